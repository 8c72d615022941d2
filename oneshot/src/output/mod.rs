//! What a written model's folder holds besides what was computed: shards and their index, config, tokenizer, chat template, model card.

mod card;
mod files;
mod shards;
mod template;

pub use self::{
    card::Card,
    files::{update_config, write_files},
    shards::{DEFAULT_SHARD_BYTES, Shards, ShardsError, parse_size},
    template::{TEMPLATES, check_template},
};

/// Bytes for people, in decimal units as disks are sold.
#[must_use]
pub fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let number = count as f64;
    for (unit, size) in [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)] {
        if number >= size {
            return format!("{:.2} {unit}", number / size);
        }
    }
    format!("{count} B")
}

/// Free bytes where `folder` lies, as far as the system tells.
#[must_use]
pub fn free_space(folder: &std::path::Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let mut existing = Some(folder);
        while let Some(folder) = existing {
            let folder = if folder.as_os_str().is_empty() { std::path::Path::new(".") } else { folder };
            if let Ok(found) = rustix::fs::statvfs(folder) {
                return found.f_bavail.checked_mul(found.f_frsize);
            }
            existing = folder.parent();
        }
        None
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}
