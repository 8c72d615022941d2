//! Statistics of a classifier on labelled data, for the merge methods that read them: the diagonal of the Fisher information (`fisher`), and Gram
//! matrices of the linear layers' inputs (`regmean`).
//!
//! - [`fisher`](self): `F = mean over items of sum over labels y of p(y|x) (d log p(y|x) / d theta)^2` (Matena and Raffel, NeurIPS 2022), exact in the labels; or
//!   with the item's own label in the place of the sum, the empirical Fisher.
//! - Gram: `G = X^T X / rows(X)` over all tokens of all items (Jin et al., ICLR 2023).
//!
//! Sums are F64 and in the order of the items; files are F32.

mod files;

use std::collections::BTreeMap;

use serde_json::Value;

pub use self::files::{Request, StatisticsError, Written, measure};
use crate::models::{self, Differentiable, ModelError, ModelWeights, Token};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The Fisher information's diagonal, a tensor for each parameter.
    Fisher,
    /// Gram matrices, one for each linear layer.
    Gram,
}

/// Which labels the Fisher information is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// All, by the model's own probabilities.
    Model,
    /// The data's.
    Given,
}

/// Sums over the items so far.
pub struct Statistics {
    kind: Kind,
    labels: Labels,
    sums: BTreeMap<String, Sum>,
    items: u64,
}

struct Sum {
    shape: Vec<usize>,
    values: Vec<f64>,
    /// Rows of inputs, of a Gram matrix.
    rows: u64,
}

/// A classifier that is measured.
pub struct Classifier(Differentiable);

impl Classifier {
    /// Takes the network out of `weights`, and its head out of `head`.
    ///
    /// # Errors
    /// If the architecture has no derivatives here, or a tensor is missing or of another shape.
    pub fn load(config: &Value, mut weights: ModelWeights, head: &ModelWeights, outputs: usize) -> Result<Self, ModelError> {
        for (name, (shape, values)) in head.iter() {
            weights.insert(name, shape, values.clone());
        }
        models::differentiable(config, outputs, &mut weights).map(Self)
    }

    /// Log-probabilities of the labels.
    ///
    /// # Errors
    /// If a token is outside the vocabulary, or the tensor library fails.
    pub fn log_probabilities(&self, text: &[Token]) -> Result<Vec<f32>, ModelError> {
        let passed = self.0.pass(text, &mut |_, _| Ok(()))?;
        Ok(passed.log_probabilities.flatten_all()?.to_vec1()?)
    }

    /// The gradient of one label's log-probability: values by tensor.
    ///
    /// # Errors
    /// As [`Classifier::log_probabilities`].
    pub fn gradient(&self, text: &[Token], label: usize) -> Result<BTreeMap<String, Vec<f32>>, ModelError> {
        let passed = self.0.pass(text, &mut |_, _| Ok(()))?;
        let zeros = |(name, shape): (&String, &Vec<usize>)| (name.clone(), vec![0.0; shape.iter().product()]);
        let mut all: BTreeMap<String, Vec<f32>> = self.0.shapes().iter().map(zeros).collect();
        self.0.gradients(&passed, &passed.log_probabilities.narrow(1, label, 1)?, &mut |name, start, values| {
            if let Some(all) = all.get_mut(name) {
                all[start..start + values.len()].copy_from_slice(values);
            }
        })?;
        Ok(all)
    }
}

impl Statistics {
    /// Nothing yet.
    #[must_use]
    pub fn new(kind: Kind, labels: Labels) -> Self {
        Self { kind, labels, sums: BTreeMap::new(), items: 0 }
    }

    /// Adds an item with its label.
    ///
    /// # Errors
    /// If the model cannot be run on it, or gives NaN or infinity.
    pub fn add(&mut self, classifier: &Classifier, text: &[Token], label: usize) -> Result<(), ModelError> {
        self.items += 1;
        match self.kind {
            Kind::Fisher => self.add_fisher(&classifier.0, text, label),
            Kind::Gram => self.add_gram(&classifier.0, text),
        }
    }

    fn add_fisher(&mut self, network: &Differentiable, text: &[Token], label: usize) -> Result<(), ModelError> {
        let passed = network.pass(text, &mut |_, _| Ok(()))?;
        let probabilities: Vec<f32> = passed.log_probabilities.exp()?.flatten_all()?.to_vec1()?;
        if probabilities.iter().any(|probability| !probability.is_finite()) {
            return Err(ModelError::Input("the model's outputs are NaN or infinite".into()));
        }
        for (index, &probability) in probabilities.iter().enumerate() {
            let weight = match self.labels {
                Labels::Model => f64::from(probability),
                Labels::Given => f64::from(u8::from(index == label)),
            };
            if weight == 0.0 {
                continue;
            }
            let sums = &mut self.sums;
            network.gradients(&passed, &passed.log_probabilities.narrow(1, index, 1)?, &mut |name, start, values| {
                let Some(shape) = network.shapes().get(name) else { return };
                let sum = sums.entry(name.to_owned()).or_insert_with(|| Sum::zeros(shape.clone()));
                for (sum, value) in sum.values[start..].iter_mut().zip(values) {
                    *sum += weight * f64::from(*value) * f64::from(*value);
                }
            })?;
        }
        Ok(())
    }

    fn add_gram(&mut self, network: &Differentiable, text: &[Token]) -> Result<(), ModelError> {
        let sums = &mut self.sums;
        network.pass(text, &mut |name, inputs| {
            let (rows, width) = inputs.dims2()?;
            let inputs = inputs.detach();
            let products: Vec<f32> = inputs.t()?.matmul(&inputs)?.flatten_all()?.to_vec1()?;
            let sum = sums.entry(name.to_owned()).or_insert_with(|| Sum::zeros(vec![width; 2]));
            sum.values.iter_mut().zip(products).for_each(|(sum, product)| *sum += f64::from(product));
            sum.rows += rows as u64;
            Ok(())
        })?;
        Ok(())
    }

    /// Every tensor's name, shape and means, in the order of names.
    pub fn means(&self) -> impl Iterator<Item = (&str, &[usize], impl Iterator<Item = f64> + '_)> + '_ {
        self.sums.iter().map(|(name, sum)| {
            #[expect(clippy::cast_precision_loss, reason = "a count of items or tokens")]
            let count = (if self.kind == Kind::Gram { sum.rows } else { self.items }).max(1) as f64;
            (name.as_str(), sum.shape.as_slice(), sum.values.iter().map(move |value| value / count))
        })
    }
}

impl Sum {
    fn zeros(shape: Vec<usize>) -> Self {
        Self { values: vec![0.0; shape.iter().product()], shape, rows: 0 }
    }
}
