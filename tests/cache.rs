//! The worker's cache of built weights: damaged entries are built again, and a full disk costs the cache and not the result.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod small;

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use evolver_common::{
    checkpoint::DigestCache,
    definition::{self, Resolved},
    recipe::Recipe,
};
use evolver_coordinator::{search::Search, setup};
use evolver_worker::child::Workshop;

use self::small::SLOW;

/// A search and the recipe of its merge.
fn prepared(folder: &Path) -> (Resolved, Recipe) {
    let path = small::search(folder, &SLOW, 20, 6);
    let resolved = definition::resolve(definition::load(&path, &[]).unwrap(), &DigestCache::in_memory()).unwrap();
    let mut search = Search::new(setup::search(&resolved).unwrap()).unwrap();
    let specs = std::iter::from_fn(|| search.ask());
    let merge = specs.map(|spec| spec.recipe).find(|recipe| recipe.depth() > 1).unwrap();
    (resolved, merge)
}

/// What the engine builds, after the cache has had its say.
fn built(resolved: &Resolved, cache: &Path, recipe: &Recipe) -> Vec<Vec<f32>> {
    let mut workshop = Workshop::open(resolved, cache).unwrap();
    let materializer = workshop.materializer();
    materializer.build(recipe, &[recipe.id()]).unwrap();
    let mut out = Vec::new();
    materializer.engine().build(recipe, &mut out).unwrap();
    out
}

fn entry(cache: &Path, recipe: &Recipe) -> PathBuf {
    cache.join("weights").join(format!("{}.safetensors", recipe.id()))
}

#[test]
fn a_damaged_entry_is_never_used() {
    let folder = tempfile::tempdir().unwrap();
    let (resolved, merge) = prepared(folder.path());
    let cache = folder.path().join("cache");
    let right = built(&resolved, &cache, &merge);
    let path = entry(&cache, &merge);
    let whole = fs::read(&path).unwrap();
    assert_eq!(built(&resolved, &cache, &merge), right, "the sound entry is as good as building");
    // Other weights, all finite, in a file that is sound in all else.
    File::options().write(true).open(&path).unwrap().write_all_at(&0.25_f32.to_le_bytes(), whole.len() as u64 - 4).unwrap();
    assert_ne!(fs::read(&path).unwrap(), whole);
    assert_eq!(built(&resolved, &cache, &merge), right);
    assert_eq!(fs::read(&path).unwrap(), whole, "it was built again");
    // Cut short, and empty.
    for length in [whole.len() as u64 / 2, 0] {
        File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
        assert_eq!(built(&resolved, &cache, &merge), right);
    }
}

#[test]
fn a_full_disk_costs_the_cache_and_not_the_result() {
    let folder = tempfile::tempdir().unwrap();
    let (resolved, merge) = prepared(folder.path());
    let right = built(&resolved, &folder.path().join("roomy"), &merge);
    let cache = folder.path().join("cache");
    fs::create_dir(&cache).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&cache).output().unwrap();
    if !mounted.status.success() {
        println!("skipped: a file system cannot be mounted here");
        return;
    }
    // Room for the beginning of an entry.
    File::create(cache.join("ballast")).unwrap().write_all(&vec![0; 700 << 10]).unwrap();
    let found = std::panic::catch_unwind(|| {
        let found = built(&resolved, &cache, &merge);
        let left = fs::read_dir(cache.join("weights")).into_iter().flatten().count();
        (found, left)
    });
    Command::new("umount").arg("-l").arg(&cache).status().unwrap();
    let (found, left) = found.unwrap();
    assert_eq!(found, right);
    assert_eq!(left, 0, "nothing half written is left");
}
