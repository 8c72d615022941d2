//! Encoder classifiers in operators that candle can differentiate.
//!
//! The operators of [`super::ops`] are fused and have no backward pass, and neither have candle's own fused norm and softmax. Here every step is made of
//! sums, products, roots and exponentials, one text at a time: slower, and with a gradient of every parameter.

use std::collections::BTreeMap;

use candle_core::{D, Device, Tensor, Var, backprop::GradStore};

use super::{
    encoder::{HeadPlan, Pooling, Token},
    ops::Activation,
    weights::{ModelError, ModelWeights, Values},
};

/// What an encoder of BERT's kind consists of: names of its tensors, without `.weight` and `.bias`, and its sizes.
#[derive(Debug)]
pub(super) struct Outline {
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) epsilon: f64,
    pub(super) activation: Activation,
    pub(super) words: String,
    /// With the number of the first position.
    pub(super) positions: (String, usize),
    pub(super) types: Option<String>,
    pub(super) embedding_norm: String,
    pub(super) layers: Vec<LayerNames>,
}

/// Names of one layer's parts.
#[derive(Debug)]
pub(super) struct LayerNames {
    pub(super) qkv: [String; 3],
    pub(super) out: String,
    pub(super) attention_norm: String,
    pub(super) up: String,
    pub(super) down: String,
    pub(super) feed_norm: String,
}

/// Hears of each linear layer's name and inputs, `rows x inputs`.
pub(crate) type Observe<'a> = &'a mut dyn FnMut(&str, &Tensor) -> Result<(), ModelError>;

/// A classifier of one text at a time.
pub(crate) struct Differentiable {
    outline: Outline,
    head: HeadPlan,
    /// Tables of words, positions and types: their gradient is that of the rows that were looked up.
    tables: BTreeMap<String, Values>,
    /// Every other parameter.
    parameters: BTreeMap<String, Var>,
    shapes: BTreeMap<String, Vec<usize>>,
}

/// Rows of tables: the table's name and the row.
type Rows = Vec<(String, usize)>;

/// One text's pass through the network.
pub(crate) struct Passed {
    /// Log-probabilities of the labels, `1 x labels`.
    pub(crate) log_probabilities: Tensor,
    embedded: Var,
    /// For each token, the rows that were looked up, by the tables' names.
    rows: Vec<Rows>,
}

impl Differentiable {
    /// Takes encoder and head out of the weights of a model; `head` says what is its own.
    pub(super) fn load(
        outline: Outline,
        head: HeadPlan,
        outputs: usize,
        weights: &mut ModelWeights,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let mut this = Self { outline, head, tables: BTreeMap::new(), parameters: BTreeMap::new(), shapes: BTreeMap::new() };
        let o = &this.outline;
        let tables = [Some(&o.words), Some(&o.positions.0), o.types.as_ref()];
        for name in tables.into_iter().flatten().map(|name| format!("{name}.weight")) {
            let rows = weights.shape(&name).and_then(|shape| shape.first().copied()).unwrap_or(0);
            let shape = vec![rows, o.hidden];
            this.tables.insert(name.clone(), weights.take(&name, &shape)?);
            this.shapes.insert(name, shape);
        }
        let mut wanted = vec![(o.embedding_norm.clone(), None)];
        for layer in &o.layers {
            wanted.extend(layer.qkv.iter().chain([&layer.out, &layer.up, &layer.down]).map(|name| (name.clone(), Some(0))));
            wanted.extend([&layer.attention_norm, &layer.feed_norm].map(|name| (name.clone(), None)));
        }
        wanted.extend(this.head.steps.iter().filter(|step| !step.name.is_empty()).map(|step| (step.name.to_owned(), Some(0))));
        wanted.push((this.head.output.to_owned(), Some(outputs)));
        for (name, matrix) in wanted {
            for part in [format!("{name}.weight"), format!("{name}.bias")] {
                let shape = weights.shape(&part).map(<[usize]>::to_vec).ok_or_else(|| missing(&part))?;
                let fits = match matrix.filter(|_| part.ends_with(".weight")) {
                    None => shape.len() == 1,
                    Some(0) => shape.len() == 2,
                    Some(outputs) => shape.len() == 2 && shape[0] == outputs,
                };
                if !fits {
                    let what = format!("has shape {shape:?}, and {outputs} outputs are needed");
                    return Err(ModelError::Tensor { name: part, what });
                }
                let values = weights.take(&part, &shape)?.into_vec()?;
                this.parameters.insert(part.clone(), Var::from_tensor(&Tensor::from_vec(values, shape.as_slice(), device)?)?);
                this.shapes.insert(part, shape);
            }
        }
        Ok(this)
    }

    /// Every parameter's name and shape.
    pub(crate) fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    /// Runs one text.
    ///
    /// # Errors
    /// If a token is outside the vocabulary, or the tensor library fails.
    pub(crate) fn pass(&self, text: &[Token], observe: Observe<'_>) -> Result<Passed, ModelError> {
        let (embedded, rows) = self.embed(text)?;
        let mut x = self.norm(&self.outline.embedding_norm, embedded.as_tensor())?;
        for layer in &self.outline.layers {
            let mixed = self.attention(layer, &x, observe)?;
            let attended = (self.linear(&layer.out, &mixed, observe)? + &x)?;
            x = self.norm(&layer.attention_norm, &attended)?;
            let inner = activate(self.outline.activation, &self.linear(&layer.up, &x, observe)?)?;
            let fed = (self.linear(&layer.down, &inner, observe)? + &x)?;
            x = self.norm(&layer.feed_norm, &fed)?;
        }
        let mut row = match self.head.pooling {
            Pooling::First => x.narrow(0, 0, 1)?,
            Pooling::Mean => x.mean_keepdim(0)?,
            Pooling::MeanWithoutFirst => x.narrow(0, 1, x.dim(0)?.saturating_sub(1))?.mean_keepdim(0)?,
        };
        for step in self.head.steps.iter().filter(|step| !step.name.is_empty()) {
            row = activate(step.activation, &self.linear(step.name, &row, observe)?)?;
        }
        let logits = self.linear(self.head.output, &row, observe)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
        let log_probabilities = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?;
        Ok(Passed { log_probabilities, embedded, rows })
    }

    /// The sums of the tables' rows, and which they are.
    fn embed(&self, text: &[Token]) -> Result<(Var, Vec<Rows>), ModelError> {
        let o = &self.outline;
        let weight = |name: &String| format!("{name}.weight");
        let mut values = vec![0.0; text.len() * o.hidden];
        let mut all = Vec::new();
        let mut row = vec![0.0; o.hidden];
        for (place, (&(token, kind), out)) in text.iter().zip(values.chunks_mut(o.hidden)).enumerate() {
            let mut rows = vec![(weight(&o.words), token as usize), (weight(&o.positions.0), o.positions.1 + place)];
            rows.extend(o.types.as_ref().map(|types| (weight(types), kind as usize)));
            for (name, index) in &rows {
                let count = self.shapes.get(name).map_or(0, |shape| shape[0]);
                if *index >= count {
                    return Err(ModelError::Input(format!("a text needs row {index} of {name}, and the model has {count}")));
                }
                self.tables.get(name).ok_or_else(|| missing(name))?.read(index * o.hidden, &mut row)?;
                out.iter_mut().zip(&row).for_each(|(out, value)| *out += value);
            }
            all.push(rows);
        }
        let device = self.parameters.values().next().map_or(&Device::Cpu, |var| var.device());
        Ok((Var::from_tensor(&Tensor::from_vec(values, (text.len(), o.hidden), device)?)?, all))
    }

    fn parameter(&self, name: &str) -> Result<&Tensor, ModelError> {
        self.parameters.get(name).map(Var::as_tensor).ok_or_else(|| missing(name))
    }

    fn linear(&self, name: &str, x: &Tensor, observe: Observe<'_>) -> Result<Tensor, ModelError> {
        let weight = format!("{name}.weight");
        observe(&weight, x)?;
        Ok(x.matmul(&self.parameter(&weight)?.t()?)?.broadcast_add(self.parameter(&format!("{name}.bias"))?)?)
    }

    fn norm(&self, name: &str, x: &Tensor) -> Result<Tensor, ModelError> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let scaled = centred.broadcast_div(&(variance + self.outline.epsilon)?.sqrt()?)?;
        let [gain, shift] = ["weight", "bias"].map(|part| self.parameter(&format!("{name}.{part}")));
        Ok(scaled.broadcast_mul(gain?)?.broadcast_add(shift?)?)
    }

    fn attention(&self, layer: &LayerNames, x: &Tensor, observe: Observe<'_>) -> Result<Tensor, ModelError> {
        let (rows, heads) = (x.dim(0)?, self.outline.heads);
        let depth = self.outline.hidden / heads;
        let mut parts = Vec::new();
        for name in &layer.qkv {
            let part = self.linear(name, x, observe)?;
            parts.push(part.reshape((rows, heads, depth))?.transpose(0, 1)?.contiguous()?);
        }
        #[expect(clippy::cast_precision_loss, reason = "a small size")]
        let scores = (parts[0].matmul(&parts[1].transpose(1, 2)?.contiguous()?)? / (depth as f64).sqrt())?;
        let shares = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let shares = shares.broadcast_div(&shares.sum_keepdim(D::Minus1)?)?;
        Ok(shares.matmul(&parts[2])?.transpose(0, 1)?.contiguous()?.reshape((rows, self.outline.hidden))?)
    }

    /// Every parameter's gradient of a scalar of this pass, as values; of a table only the rows that the text looked up, each once, with their number.
    ///
    /// # Errors
    /// If the tensor library fails.
    pub(crate) fn gradients(
        &self,
        passed: &Passed,
        of: &Tensor,
        each: &mut dyn FnMut(&str, usize, &[f32]),
    ) -> Result<(), ModelError> {
        let gradients: GradStore = of.backward()?;
        for (name, var) in &self.parameters {
            if let Some(gradient) = gradients.get(var) {
                each(name, 0, &gradient.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        let Some(embedded) = gradients.get(&passed.embedded) else { return Ok(()) };
        let embedded = embedded.to_vec2::<f32>()?;
        let mut sums: BTreeMap<(&str, usize), Vec<f32>> = BTreeMap::new();
        for (rows, gradient) in passed.rows.iter().zip(&embedded) {
            for (name, index) in rows {
                let sum = sums.entry((name, *index)).or_insert_with(|| vec![0.0; gradient.len()]);
                sum.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value);
            }
        }
        for ((name, index), sum) in sums {
            each(name, index * self.outline.hidden, &sum);
        }
        Ok(())
    }
}

fn missing(name: &str) -> ModelError {
    ModelError::Tensor { name: name.to_owned(), what: "is missing".into() }
}

/// Only operators with a backward pass.
fn activate(activation: Activation, x: &Tensor) -> Result<Tensor, ModelError> {
    Ok(match activation {
        Activation::None => x.clone(),
        Activation::Gelu => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::QuickGelu => (x * ((x * -1.702)?.exp()? + 1.0)?.recip()?)?,
        Activation::Silu => x.silu()?,
        Activation::Relu => x.relu()?,
        Activation::Tanh => x.tanh()?,
    })
}
