//! Embeddings under another vocabulary, read row by row where they lie.

use std::{ops::Range, sync::Arc};

use evolver_common::checkpoint::Checkpoint;

/// Where one row of a model's embeddings comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// Zeros.
    Zero,
    /// A row of a model.
    Of(usize, usize),
    /// The mean of rows of models.
    MeanOf(Arc<[(usize, usize)]>),
    /// The mean of this model's rows that are not padding.
    Mean,
}

/// A model's embeddings, row by row.
#[derive(Debug)]
pub struct Rows {
    /// Index of the model.
    pub model: usize,
    /// Rows that are not padding.
    pub named: usize,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Rows {
    /// Whether it is the model's own rows, all of them in their order.
    #[must_use]
    pub fn is_unchanged(&self, rows: usize) -> bool {
        self.rows.len() == rows && self.rows.iter().enumerate().all(|(place, row)| *row == Row::Of(self.model, place))
    }

    /// Bytes that tell it from any other.
    #[must_use]
    pub fn signature(&self) -> Vec<u8> {
        format!("{:?}", self.rows).into_bytes()
    }

    /// The mean of the rows that are not padding, in F64 and in their order; empty where none is asked for.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn mean(&self, models: &[Arc<Checkpoint>], tensor: &str, width: usize) -> Result<Vec<f32>, String> {
        if !self.rows.contains(&Row::Mean) || self.named == 0 {
            return Ok(Vec::new());
        }
        let mut sums = vec![0.0f64; width];
        let mut row = vec![0.0; width];
        for place in 0..self.named {
            self.read(models, tensor, width, &[], place * width..(place + 1) * width, &mut row)?;
            sums.iter_mut().zip(&row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        #[expect(clippy::cast_precision_loss, reason = "numbers of tokens")]
        let count = self.named as f64;
        Ok(sums.into_iter().map(|sum| round(sum / count)).collect())
    }

    /// Reads flat `elements` of the tensor with `width` columns; `mean` is what [`Rows::mean`] gives.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn read(
        &self,
        models: &[Arc<Checkpoint>],
        tensor: &str,
        width: usize,
        mean: &[f32],
        elements: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), String> {
        let mut at = elements.start;
        while at < elements.end {
            let (place, column) = (at / width, at % width);
            let count = (width - column).min(elements.end - at);
            let part = &mut out[at - elements.start..][..count];
            let read = |(model, row): (usize, usize), part: &mut [f32]| {
                let start = row * width + column;
                models[model].read(tensor, start..start + count, part).map_err(|error| error.to_string())
            };
            match &self.rows[place] {
                Row::Zero => part.fill(0.0),
                Row::Of(model, row) => read((*model, *row), part)?,
                Row::MeanOf(sources) => {
                    let mut sums = vec![0.0f64; count];
                    for source in sources.iter() {
                        read(*source, part)?;
                        sums.iter_mut().zip(&*part).for_each(|(sum, value)| *sum += f64::from(*value));
                    }
                    #[expect(clippy::cast_precision_loss, reason = "numbers of models")]
                    let divisor = sources.len() as f64;
                    part.iter_mut().zip(sums).for_each(|(value, sum)| *value = round(sum / divisor));
                }
                Row::Mean => part.copy_from_slice(mean.get(column..column + count).unwrap_or(&vec![0.0; count])),
            }
            at += count;
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the one rounding to F32")]
fn round(value: f64) -> f32 {
    value as f32
}
