//! Bad input at the command line: a sentence that says what and where, exit code 2, and nothing written.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod small;

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Output,
};

use evolver_proto::v1::{self, evolver_server};
use small::{Shape, TINY};
use tonic::{Request, Response, Status};

/// A folder with a small search, that nothing may be added to.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self::of(&TINY)
    }

    fn of(shape: &Shape) -> Self {
        let folder = tempfile::tempdir().unwrap();
        small::search(folder.path(), shape, 30, 6);
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Every file and folder there is.
    fn inventory(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                }
                found.push(path);
            }
        }
        let mut found = Vec::new();
        walk(self.path(), &mut found);
        found.sort_unstable();
        found
    }

    /// The command must end with 2 and these words, and leave the folder as it is.
    fn refuses(&self, arguments: &[&str], words: &[&str]) {
        let before = self.inventory();
        let output = small::run(self.path(), arguments);
        refused(arguments, &output, words);
        assert_eq!(self.inventory(), before, "{arguments:?} left something behind");
    }

    /// As [`World::refuses`], for `run`.
    fn run_refuses(&self, set: &[&str], words: &[&str]) {
        let sets = set.iter().flat_map(|set| ["--set", set]);
        let arguments: Vec<_> = ["run", "search.toml", "--dir", "out"].into_iter().chain(sets).collect();
        self.refuses(&arguments, words);
    }
}

fn refused(arguments: &[&str], output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?}: {word:?} is missing in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_path_that_leads_nowhere_or_to_no_checkpoint() {
    let world = World::new();
    world.refuses(&["run", "none.toml", "--dir", "out"], &["cannot read the definition none.toml"]);
    world.run_refuses(&["models.base=nowhere"], &["models.base", "nowhere: no such file or folder"]);
    fs::create_dir(world.path().join("empty")).unwrap();
    world.run_refuses(&["models.experts.1.path=empty"], &["expert b", "empty is not a checkpoint", "model.safetensors"]);
    world.refuses(&["show", "empty"], &["empty"]);
    world.refuses(&["show", "nowhere"], &["nowhere"]);
    world.refuses(&["verify", "nowhere"], &["nowhere"]);
    world.refuses(&["export", "nowhere", "--out", "out"], &["nowhere"]);
}

#[test]
fn a_checkpoint_that_is_damaged_or_hostile() {
    let world = World::new();
    let weights = world.path().join("experts/b/model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    world.run_refuses(&[], &["expert b", "experts/b/model.safetensors", "truncated"]);
    // A header that claims what no memory holds, in a file as large as it says, of which nothing is on disk.
    let bomb = File::create(&weights).unwrap();
    bomb.set_len(100 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&bomb, &(90u64 << 20).to_le_bytes(), 0).unwrap();
    world.run_refuses(&[], &["expert b", "the header claims 94371840 bytes, and at most"]);
    // The last tensor is the classifier's bias; its last element becomes NaN.
    let mut poisoned = whole.clone();
    let end = poisoned.len();
    poisoned[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, poisoned).unwrap();
    world.run_refuses(&[], &["b: ", "\"classifier.bias\"", "NaN"]);
}

#[test]
fn experts_of_another_base_are_refused_by_all_their_differences() {
    let world = World::new();
    let other = Shape { hidden: 8, vocabulary: 41, ..TINY };
    fs::remove_dir_all(world.path().join("experts/c")).unwrap();
    small::model(&world.path().join("experts/c"), &other, small::expert(3));
    let labels = Shape { labels: 5, ..TINY };
    fs::remove_dir_all(world.path().join("experts/d")).unwrap();
    small::model(&world.path().join("experts/d"), &labels, small::expert(4));
    let words =
        ["c: ", "word_embeddings", "[41, 8]", "[40, 16]", "bert.pooler.dense.bias", "d: ", "classifier.weight", "[5, 16]"];
    world.run_refuses(&[], &words);
}

#[test]
fn dev_data_that_cannot_be_read() {
    let world = World::new();
    let dev = world.path().join("dev.jsonl");
    let good = fs::read_to_string(&dev).unwrap();
    fs::write(&dev, "\n \n").unwrap();
    world.run_refuses(&[], &["tasks.t", "dev.jsonl is empty"]);
    fs::write(&dev, format!("{good}no JSON here\n")).unwrap();
    world.run_refuses(&[], &["tasks.t", "dev.jsonl, line 31: not JSON"]);
    fs::write(&dev, format!("{good}{{\"text\": \"w1\", \"label\": \"labell1\"}}\n")).unwrap();
    world.run_refuses(&[], &["line 31", "unknown label \"labell1\"", "did you mean \"label1\"?"]);
    fs::write(&dev, format!("{good}{{\"label\": \"label1\"}}\n")).unwrap();
    world.run_refuses(&[], &["line 31", "field \"text\" is missing"]);
    fs::remove_file(&dev).unwrap();
    world.run_refuses(&[], &["tasks.t", "dev.jsonl"]);
}

#[test]
fn keys_and_values_of_the_definition() {
    let world = World::new();
    world.run_refuses(&["stop.offsprings=3"], &["unknown key \"offsprings\" (did you mean \"offspring\"?) in stop"]);
    world.run_refuses(&["search.scael=0.5"], &["unknown key \"scael\" (did you mean \"scale\"?) in search"]);
    world.run_refuses(&["search.scale=2.5"], &["search.scale is 2.5: it must lie between 0 and 2"]);
    world.run_refuses(&["search.crossover_rate=-0.1"], &["search.crossover_rate is -0.1"]);
    world.run_refuses(&["acceptance.rule=greddy"], &["unknown rule \"greddy\"", "did you mean \"greedy\"?"]);
    world.run_refuses(&["merges.0.method=tis"], &["merges.pcb", "unknown merge method \"tis\"", "did you mean \"ties\"?"]);
    world.run_refuses(&["search.in_flight"], &["expected key=value"]);
    let broken = world.path().join("broken.toml");
    fs::write(&broken, "name = \n").unwrap();
    world.refuses(&["run", "broken.toml", "--dir", "out"], &["broken.toml", "line 1"]);
}

#[test]
fn a_folder_of_another_search_and_an_occupied_output() {
    let world = World::new();
    let run = ["run", "search.toml", "--dir", "search", "--workers", "1"];
    small::succeed(world.path(), &run);
    let state = small::show(world.path(), "search");
    let changed: Vec<_> = run.iter().copied().chain(["--set", "search.seed=5", "--set", "stop.offspring=4"]).collect();
    world.refuses(&changed, &["another definition", "search.seed: was 0, now 5", "stop.offspring: was 8, now 4"]);
    assert_eq!(small::show(world.path(), "search"), state);
    world.refuses(&["export", "search", "--out", "base"], &["base exists and is not an empty folder"]);
    world.refuses(&["export", "search", "nobody", "--out", "out"], &["no individual has the name", "nobody"]);
    // What cannot alter a decision is no other search.
    small::succeed(world.path(), &[&run[..], &["--set", "stop.offspring=10"]].concat());
    assert_eq!(small::show(world.path(), "search")["offspring"]["committed"], 10);
}

#[test]
fn a_port_and_a_folder_in_use() {
    let world = World::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    world.refuses(
        &["coordinator", "search.toml", "--dir", "out", "--listen", &address],
        &[&format!("cannot listen on {address}"), "in use"],
    );
    let served = ["coordinator", "search.toml", "--dir", "served", "--listen", "127.0.0.1:0"];
    let mut first = small::evolver(world.path(), &served).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(first.stderr.take().unwrap()));
    lines.find(|line| line.as_ref().unwrap().contains("listening on")).unwrap().unwrap();
    let output = small::run(world.path(), &served);
    refused(&served, &output, &["served is in use by another coordinator", &format!("process {}", first.id())]);
    first.kill().unwrap();
    first.wait().unwrap();
}

/// A coordinator of another version: it refuses as every version does.
struct Other;

#[tonic::async_trait]
impl evolver_server::Evolver for Other {
    type WatchStream = tokio_stream::Empty<Result<v1::Status, Status>>;

    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterReply>, Status> {
        let spoken = request.into_inner().protocol;
        Err(Status::failed_precondition(format!("the worker speaks protocol {spoken}, and this coordinator protocol 99")))
    }
    async fn lease(&self, _: Request<v1::LeaseRequest>) -> Result<Response<v1::LeaseReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn heartbeat(&self, _: Request<v1::HeartbeatRequest>) -> Result<Response<v1::HeartbeatReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn report(&self, _: Request<v1::ReportRequest>) -> Result<Response<v1::ReportReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn drain(&self, _: Request<v1::DrainRequest>) -> Result<Response<v1::DrainReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn operate(&self, _: Request<v1::OperateRequest>) -> Result<Response<v1::OperateReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[test]
fn a_worker_of_another_protocol_version() {
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let service = evolver_server::EvolverServer::new(Other);
    runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    world.refuses(
        &["worker", "--connect", &address, "--cache", "cache"],
        &["refuses", &format!("protocol {}", evolver_proto::PROTOCOL), "protocol 99"],
    );
}

/// A file may grow to 64 KiB and no further: writing fails in the middle of the model, as it does on a full disk.
#[test]
fn a_disk_that_fills_while_exporting() {
    let world = World::of(&Shape { vocabulary: 2000, ..TINY });
    small::succeed(world.path(), &["run", "search.toml", "--dir", "search", "--workers", "1"]);
    let before = world.inventory();
    let script = format!("trap '' XFSZ; ulimit -f 64; exec {} export search --out out", env!("CARGO_BIN_EXE_evolver"));
    let output = std::process::Command::new("bash").args(["-c", &script]).current_dir(world.path()).output().unwrap();
    refused(&["export"], &output, &["cannot write", "too large", "nothing was left behind"]);
    assert_eq!(world.inventory(), before);
    small::succeed(world.path(), &["export", "search", "--out", "out"]);
}
