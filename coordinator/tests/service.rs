//! The service's contract, over real sockets.

mod world;

use std::time::{Duration, Instant};

use self::world::{Served, Worker, resolved};

#[tokio::test]
async fn a_lease_does_not_wait_for_a_delayed_acknowledgement() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|definition| definition["stop"]["offspring"] = 60.into())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    let mut times = Vec::new();
    for _ in 0..41 {
        let began = Instant::now();
        let assignment = worker.lease().await;
        times.push(began.elapsed());
        // As long as scoring takes: the connection falls silent, and the kernel begins to delay its acknowledgements.
        tokio::time::sleep(Duration::from_millis(60)).await;
        worker.finish(&assignment).await;
    }
    times.sort_unstable();
    println!("a lease takes {:?} (median), {:?} to {:?}", times[20], times[0], times[40]);
    assert!(times[20] < Duration::from_millis(20), "{times:?}");
    served.end().await.unwrap();
}
