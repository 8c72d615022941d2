//! Batches of items of similar length, as large as the definition and the memory allow.

use std::{cmp::Reverse, fs, ops::ControlFlow};

use serde_json::Value;

use super::{EvaluateError, Progress, outcomes::Outcome};
use crate::models::ModelError;

/// Tokens of a batch that memory never forbids.
const TOKENS_MIN: usize = 64;

/// Tokens that a batch may have: as many as the definition says, fewer where a quarter of the free memory does not hold their states.
pub(super) fn budget(wanted: usize, config: &Value) -> usize {
    let config = config.get("vision_config").unwrap_or(config);
    let side = |keys: &[&str]| keys.iter().find_map(|key| config[*key].as_u64()).unwrap_or(4096);
    let hidden = side(&["hidden_size", "d_model", "n_embd", "dim"]);
    let inner = side(&["intermediate_size", "d_ff", "n_inner", "hidden_dim"]);
    // States, queries, keys, values, mixed, residual and normed ones, their copies on the way, and the feed-forward block's.
    let bytes = 4 * (12 * hidden + 3 * inner);
    let room = available().map_or(usize::MAX, |free| usize::try_from(free / 4 / bytes.max(1)).unwrap_or(usize::MAX));
    wanted.min(room.max(TOKENS_MIN))
}

/// Memory in bytes that can still be had: the machine's, or the control group's if that is less.
pub(crate) fn available() -> Option<u64> {
    let number = |text: String| text.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
    let field = |line: &str| line.strip_prefix("MemAvailable:").map(str::to_owned);
    let machine = fs::read_to_string("/proc/meminfo").ok()?.lines().find_map(field).and_then(number)? * 1024;
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok().and_then(number);
    let group = read("memory.max").zip(read("memory.current")).map(|(limit, used)| limit.saturating_sub(used));
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// Runs `work` over batches of the chosen items, given their sizes in tokens, longest first, and gives its results in the items' order. What is known of
/// an item stands for running it. A batch that is too large for the device's memory is cut in two, and those after it are smaller.
pub(super) fn run<T: Outcome>(
    chosen: &[usize],
    sizes: &[usize],
    mut budget: usize,
    progress: Progress<'_>,
    mut work: impl FnMut(&[usize]) -> Result<Vec<T>, EvaluateError>,
) -> Result<Vec<T>, EvaluateError> {
    let mut results: Vec<Option<T>> = chosen.iter().map(|&item| progress.known(item).and_then(T::read)).collect();
    let mut order: Vec<usize> = (0..sizes.len()).filter(|&index| results[index].is_none()).collect();
    order.sort_by_key(|&index| Reverse(sizes[index]));
    let mut rest = order.as_slice();
    let mut done = (sizes.len() - order.len()) as u64;
    while !rest.is_empty() {
        let mut room = budget;
        let fits = rest.iter().take_while(|&&item| {
            let fits = sizes[item] <= room;
            room = room.saturating_sub(sizes[item]);
            fits
        });
        let (batch, after) = rest.split_at(fits.count().max(1));
        match work(batch) {
            Ok(found) => {
                for (&index, result) in batch.iter().zip(found) {
                    progress.found(chosen[index], result.write());
                    results[index] = Some(result);
                }
                rest = after;
                done += batch.len() as u64;
                if progress.done(done) == ControlFlow::Break(()) {
                    return Err(EvaluateError::Stopped);
                }
            }
            Err(error) if batch.len() > 1 && is_memory(&error) => {
                budget = batch.iter().map(|&item| sizes[item]).sum::<usize>() / 2;
                tracing::warn!("{} items were too many for the memory: batches are now at most {budget} tokens", batch.len());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(results.into_iter().flatten().collect())
}

/// Whether an error is that of a device whose memory is full.
fn is_memory(error: &EvaluateError) -> bool {
    let EvaluateError::Model(ModelError::Run(error)) = error else {
        return false;
    };
    let text = error.to_string().to_lowercase();
    text.contains("out of memory") || text.contains("out_of_memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_fit_the_budget_and_shrink_when_memory_is_short() {
        let sizes = [5, 90, 30, 10, 60, 7];
        let mut seen = Vec::new();
        let mut told = Vec::new();
        let mut progress = |done: u64| {
            told.push(done);
            ControlFlow::Continue(())
        };
        let results = run(&[0, 1, 2, 3, 4, 5], &sizes, 100, &mut progress, |batch| {
            let tokens: usize = batch.iter().map(|&item| sizes[item]).sum();
            seen.push((batch.to_vec(), tokens));
            if tokens > 70 && batch.len() > 1 {
                return Err(candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY: out of memory".into()).into());
            }
            Ok(batch.iter().map(|item| item * 10).collect())
        });
        assert_eq!(results.unwrap(), [0, 10, 20, 30, 40, 50]);
        assert_eq!(seen[0], (vec![1], 90));
        assert_eq!(seen[1], (vec![4, 2, 3], 100));
        assert!(seen[2..].iter().all(|(_, tokens)| *tokens <= 60), "{seen:?}");
        assert_eq!(told.last(), Some(&6));
        let other =
            run(&[0, 1, 2, 3, 4, 5], &sizes, 100, &mut |_: u64| ControlFlow::Continue(()), |_| -> Result<Vec<usize>, _> {
                Err(EvaluateError::Unfit("x".into()))
            });
        assert!(other.is_err());
    }

    #[test]
    fn what_is_known_is_not_run_again_and_what_is_found_is_told() {
        struct Half(Vec<(usize, Vec<u8>)>, Vec<u64>);
        impl super::super::Watch for Half {
            fn done(&mut self, items: u64) -> ControlFlow<()> {
                self.1.push(items);
                ControlFlow::Continue(())
            }

            fn known(&self, item: usize) -> Option<&[u8]> {
                self.0.iter().find(|(known, _)| *known == item).map(|(_, outcome)| outcome.as_slice())
            }

            fn found(&mut self, item: usize, outcome: Vec<u8>) {
                self.0.push((item, outcome));
            }
        }
        // Item 9 is known by bytes that are no outcome: it is run.
        let mut half = Half(vec![(7, 70usize.write()), (9, vec![1])], Vec::new());
        let chosen = [5, 7, 9];
        let results = run(&chosen, &[1, 1, 1], 1, &mut half, |batch| Ok(batch.iter().map(|&index| 10 * chosen[index]).collect()));
        assert_eq!(results.unwrap(), [50, 70, 90]);
        assert_eq!(half.1, [2, 3]);
        assert_eq!(half.0[2..], [(5, 50usize.write()), (9, 90usize.write())]);
    }
}
