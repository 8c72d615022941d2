//! `merge`: one merge, without a search.

use std::{path::Path, sync::Arc};

use evolver_common::{
    checkpoint::{Checkpoint, DigestCache, Patterns, fit},
    merge::{CheckpointLeaf, Engine, Options, config::MergeConfig},
    recipe::{Op, Recipe},
};

use crate::{cli, export::write_model, fail::refuse};

pub(crate) fn merge(options: &cli::Merge) -> anyhow::Result<()> {
    let mut config = MergeConfig::load(&options.config).map_err(refuse)?;
    let digests = DigestCache::in_memory();
    let folder = options.config.parent().unwrap_or(Path::new(""));
    let statistics = config.open_statistics(folder, &digests).map_err(refuse)?;
    let base = config.base.as_ref().map(|path| Checkpoint::open(path).map(Arc::new)).transpose().map_err(refuse)?;
    let mut models = Vec::new();
    for (path, _) in &config.models {
        let model = match &base {
            Some(base) => Checkpoint::open_over(path, base),
            None => Checkpoint::open(path),
        };
        models.push(Arc::new(model.map_err(refuse)?));
    }
    let layout = base.as_ref().or(models.first()).ok_or_else(|| refuse("models is empty: at least one is needed"))?;
    let names: Vec<_> = config.models.iter().map(|(path, _)| path.display().to_string()).collect();
    let named: Vec<_> = names.iter().map(String::as_str).zip(models.iter().map(|model| &**model)).collect();
    let space = fit(layout, &named, &Patterns::default()).map_err(|differences| {
        let sentences: Vec<_> = differences.iter().map(ToString::to_string).collect();
        refuse(sentences.join("\n"))
    })?;
    let space = Arc::new(space);
    let mut engine = Engine::new(Arc::clone(&space), Options::default());
    statistics.into_iter().for_each(|(digest, file)| engine.insert_statistics(digest, file));
    let mut leaf = |checkpoint: &Arc<Checkpoint>| -> anyhow::Result<Recipe> {
        checkpoint.scan_finite().map_err(refuse)?;
        let recipe = Recipe::checkpoint(checkpoint.digest(&digests).map_err(refuse)?);
        engine.insert(recipe.id(), Arc::new(CheckpointLeaf::new(Arc::clone(checkpoint), Arc::clone(&space))));
        Ok(recipe)
    };
    let base_recipe = base.as_ref().map(&mut leaf).transpose()?;
    let recipes = models.iter().map(&mut leaf).collect::<anyhow::Result<Vec<_>>>()?;
    let recipe = Recipe::new(Op::Merge(config.merge(base_recipe, recipes).map_err(refuse)?));
    let card =
        format!("---\ntags: [merge, evolver]\n---\n\n# Merged model\n\n- recipe id: `{}`\n\n```\n{recipe}\n```\n", recipe.id());
    let model_config = layout.config().unwrap_or_default();
    write_model(layout, &engine, &recipe, config.dtype, &model_config, &card, &options.out)?;
    eprintln!("wrote {}", options.out.display());
    Ok(())
}
