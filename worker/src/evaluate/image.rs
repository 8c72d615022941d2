//! Image classification, from folders of images or from columns that hold them.

use std::{fs, io::Cursor, path::Path};

use ::image::{DynamicImage, ImageReader, imageops::FilterType};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use evolver_common::{
    data::Row,
    score::{Split, TaskScore, classification},
};
use rayon::prelude::*;
use serde_json::Value;

use super::{
    Declaration, EvaluateError, Evaluator, Parameter, ParameterKind, Progress, Setup, Splits, Subject, TaskInput, batches,
    classification::{enough_labels, label},
    parameters::Settings,
};
use crate::models::{HeadPlan, Kind, Use};

pub(super) static DECLARATION: Declaration = Declaration {
    name: "image_classification",
    summary: "Images by the head of a vision transformer.",
    source: "transformers' AutoModelForImageClassification; sizes, crops and normalization from preprocessor_config.json",
    metrics: &[("accuracy", "share of images whose label is right"), ("macro_f1", "mean F1 over the labels")],
    parameters: &[Parameter {
        name: "image",
        kind: ParameterKind::Text,
        default: Some(r#""image""#),
        doc: "Column with an image: the path of its file, or its bytes as Parquet and Arrow have them.",
    }],
    open,
};

/// An image that is decoded when its turn comes.
struct Item {
    row: Row,
    label: usize,
}

struct Images {
    plan: HeadPlan,
    name: String,
    column: String,
    labels: usize,
    rows: usize,
    budget: usize,
    prepare: Preparation,
    items: Splits<Item>,
}

fn open(setup: &Setup, input: &TaskInput) -> Result<Box<dyn Evaluator>, EvaluateError> {
    let task = &input.task;
    let architecture = setup.architecture(&[Kind::Vision], DECLARATION.name)?;
    enough_labels(&task.name, &input.labels)?;
    let column = Settings::new(&DECLARATION, task).text("image");
    let one = |row: &Row| -> Result<Item, EvaluateError> {
        row.need(&column)?;
        Ok(Item { label: row.label(&task.label, &input.labels)?, row: row.clone() })
    };
    let images = Images {
        items: Splits::new(input, |rows| rows.iter().map(one).collect::<Result<_, EvaluateError>>())?,
        plan: architecture.head(&setup.config, Use::Whole)?,
        name: task.name.clone(),
        labels: input.labels.len(),
        rows: architecture.limit(&setup.config)?,
        budget: batches::budget(setup.batch_tokens, &setup.config),
        prepare: Preparation::open(&setup.folder)?,
        column,
    };
    // One that cannot be decoded is told of before the search starts.
    for split in [Split::Dev, Split::Test] {
        images.items.of(split).par_iter().try_for_each(|item| decode(&item.row, &images.column).map(drop))?;
    }
    Ok(Box::new(images))
}

/// The image of a row.
fn decode(row: &Row, column: &str) -> Result<DynamicImage, EvaluateError> {
    let bytes = match row.need(column)? {
        Value::String(path) => file(row, path)?,
        Value::Object(parts) => match (parts.get("bytes"), parts.get("path")) {
            (Some(Value::String(text)), _) => {
                BASE64_STANDARD.decode(text).map_err(|error| row.error(format!("the image's bytes are not Base64: {error}")))?
            }
            (_, Some(Value::String(path))) => file(row, path)?,
            _ => return Err(row.error(format!("field {column:?} holds neither bytes nor a path")).into()),
        },
        _ => return Err(row.error(format!("field {column:?} is not an image")).into()),
    };
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| row.error(error.to_string()))?;
    Ok(reader.decode().map_err(|error| row.error(format!("the image cannot be decoded: {error}")))?)
}

fn file(row: &Row, path: &str) -> Result<Vec<u8>, EvaluateError> {
    let path = row.folder().join(path);
    Ok(fs::read(&path).map_err(|error| row.error(format!("cannot read the image {}: {error}", path.display())))?)
}

/// From an image to the values that the network takes.
struct Preparation {
    /// Side of the shorter edge, or of both, to which the image is resized.
    resize: Option<(u32, bool)>,
    /// The middle that is cut out.
    crop: Option<u32>,
    filter: FilterType,
    scale: f32,
    mean: [f32; 3],
    deviation: [f32; 3],
}

impl Preparation {
    fn open(folder: &Path) -> Result<Self, EvaluateError> {
        let path = folder.join("preprocessor_config.json");
        let unfit = |what: String| EvaluateError::Unfit(format!("{}: {what}", path.display()));
        let bytes =
            fs::read(&path).map_err(|error| unfit(format!("it tells how images are prepared, and cannot be read: {error}")))?;
        let c: Value = serde_json::from_slice(&bytes).map_err(|error| unfit(error.to_string()))?;
        let flag = |key: &str, default| c[key].as_bool().unwrap_or(default);
        let side = |key: &str| {
            let size = &c[key];
            let number = |value: &Value| value.as_u64().and_then(|side| u32::try_from(side).ok());
            number(size).or_else(|| number(&size["shortest_edge"])).or_else(|| number(&size["height"]))
        };
        let triple = |key: &str, default: f32| {
            let of = |index: usize| {
                #[expect(clippy::cast_possible_truncation, reason = "rounded to F32")]
                let value = c[key][index].as_f64().map_or(default, |value| value as f32);
                value
            };
            [of(0), of(1), of(2)]
        };
        let both = c["size"]["height"].is_u64() || c["size"].is_u64() && !flag("do_center_crop", false);
        #[expect(clippy::cast_possible_truncation, reason = "rounded to F32")]
        let scale = c["rescale_factor"].as_f64().map_or(1.0 / 255.0, |factor| factor as f32);
        let normalize = flag("do_normalize", true);
        Ok(Self {
            resize: side("size").filter(|_| flag("do_resize", true)).map(|side| (side, both)),
            crop: side("crop_size").filter(|_| flag("do_center_crop", false)),
            // Numbers as Pillow has them.
            filter: match c["resample"].as_u64() {
                Some(0) => FilterType::Nearest,
                Some(3) => FilterType::CatmullRom,
                Some(1) => FilterType::Lanczos3,
                _ => FilterType::Triangle,
            },
            scale: if flag("do_rescale", true) { scale } else { 1.0 },
            mean: if normalize { triple("image_mean", 0.5) } else { [0.0; 3] },
            deviation: if normalize { triple("image_std", 0.5) } else { [1.0; 3] },
        })
    }

    /// `3 x side x side` values.
    fn run(&self, image: &DynamicImage, row: &Row, side: usize) -> Result<Vec<f32>, EvaluateError> {
        let mut image = DynamicImage::from(image.to_rgb8());
        if let Some((target, both)) = self.resize
            && (image.width() != target || image.height() != target)
        {
            let shorter = u64::from(image.width().min(image.height()).max(1));
            let scaled = |edge: u32| u32::try_from(u64::from(edge) * u64::from(target) / shorter).unwrap_or(target).max(1);
            let (width, height) = if both { (target, target) } else { (scaled(image.width()), scaled(image.height())) };
            image = image.resize_exact(width, height, self.filter);
        }
        if let Some(crop) = self.crop {
            let (left, top) = (image.width().saturating_sub(crop) / 2, image.height().saturating_sub(crop) / 2);
            image = image.crop_imm(left, top, crop, crop);
        }
        if (image.width() as usize, image.height() as usize) != (side, side) {
            let (width, height) = (image.width(), image.height());
            return Err(row
                .error(format!("after preparation it has {width} x {height} pixels, and the model takes {side} x {side}"))
                .into());
        }
        let pixels = image.to_rgb8();
        let value = |channel: usize, byte: u8| (f32::from(byte) * self.scale - self.mean[channel]) / self.deviation[channel];
        Ok((0..3).flat_map(|channel| pixels.pixels().map(move |pixel| value(channel, pixel.0[channel]))).collect())
    }
}

impl Evaluator for Images {
    fn head(&self) -> Vec<String> {
        self.plan.tensors()
    }

    fn items(&self, split: Split) -> usize {
        self.items.of(split).len()
    }

    fn evaluate(
        &mut self,
        subject: &mut Subject<'_>,
        split: Split,
        chosen: &[usize],
        progress: Progress<'_>,
    ) -> Result<TaskScore, EvaluateError> {
        let head = subject.head(&self.plan, self.labels)?;
        let model = subject.vision()?;
        let items: Vec<_> = chosen.iter().map(|&item| &self.items.of(split)[item]).collect();
        let predicted = batches::run(chosen, &vec![self.rows; items.len()], self.budget, progress, |batch| {
            let prepare =
                |&item: &usize| self.prepare.run(&decode(&items[item].row, &self.column)?, &items[item].row, model.side());
            let images = batch.par_iter().map(prepare).collect::<Result<Vec<_>, _>>()?;
            let states = model.states(&images.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
            let logits = head.of_texts(&states, &vec![model.rows(); batch.len()])?;
            match logits.iter().position(|logits| logits.iter().any(|logit| !logit.is_finite())) {
                Some(index) => Err(EvaluateError::NonFinite { task: self.name.clone(), item: chosen[batch[index]] }),
                None => Ok(logits.iter().map(|logits| label(logits)).collect()),
            }
        })?;
        let truth: Vec<_> = items.iter().map(|item| item.label).collect();
        Ok(classification(&self.name, &truth, &predicted, self.labels))
    }
}
