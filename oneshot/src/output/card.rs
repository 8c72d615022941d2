//! The model card: what was merged, how, and the digests that tell whether it is the same again.

use std::fmt::Write as _;

use evolver_common::{digest::Digest, merge, recipe::Recipe};

use crate::plan::Plan;

/// What a card says.
#[derive(Debug)]
pub struct Card<'a> {
    /// The merge.
    pub plan: &'a Plan,
    /// The recipe of each part, with what it is.
    pub recipes: &'a [(String, Recipe)],
    /// Digest of the whole.
    pub digest: Digest,
    /// Content digests of the models.
    pub digests: &'a [Digest],
}

impl Card<'_> {
    /// The card as Markdown with the hub's front matter.
    #[must_use]
    pub fn text(&self) -> String {
        let plan = self.plan;
        let mut names: Vec<&str> = Vec::new();
        let merged = plan.models.iter().skip(usize::from(plan.config.vectors));
        for name in merged.flat_map(|model| model.reference.names()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let list: String = names.iter().fold(String::new(), |mut list, name| {
            writeln!(list, "- {}", serde_json::Value::from(*name)).ok();
            list
        });
        let summary = merge::find(&plan.config.method).map_or("", |method| method.summary());
        let library = if plan.config.vectors { "peft" } else { "transformers" };
        let mut text = format!(
            "---\nbase_model:\n{list}library_name: {library}\ntags:\n- merge\n- mergekit\n- evolver\n---\n\n# Merged model\n\nA merge by `{}`: {summary}.\n\n- digest: `{}`\n\n## Models\n\n| model | content digest |\n|---|---|\n",
            plan.config.method, self.digest
        );
        for (model, digest) in plan.models.iter().zip(self.digests) {
            writeln!(text, "| `{}` | `{digest}` |", model.reference).ok();
        }
        if !plan.notes.is_empty() {
            text.push_str("\n## Notes\n\n");
            for note in &plan.notes {
                writeln!(text, "- {note}").ok();
            }
        }
        let body = plan.config.text.trim_end();
        let language = if body.contains("merge_method:") { "yaml" } else { "toml" };
        write!(text, "\n## Definition\n\n```{language}\n{body}\n```\n\n## Recipe\n").ok();
        for (label, recipe) in self.recipes {
            if !label.is_empty() {
                write!(text, "\n{label}, id `{}`:\n", recipe.id()).ok();
            }
            write!(text, "\n```\n{recipe}\n```\n").ok();
        }
        text
    }
}
