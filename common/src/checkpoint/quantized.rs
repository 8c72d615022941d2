//! Quantized checkpoints hold codes and scales, not weights: they are refused by the name of their format, before a mean of codes could pass for
//! a model.

use std::path::Path;

use serde_json::Value;

use super::open::{OpenError, read_json};

/// Ends of tensors' names that only quantized checkpoints have, with their formats.
const MARKS: [(&str, &str); 9] = [
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".g_idx", "GPTQ"),
    (".weight.absmax", "bitsandbytes"),
    (".weight.quant_map", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale", "compressed-tensors or FP8"),
    (".weight_scale_inv", "FP8"),
];

/// What is said of an element type that cannot be read.
pub(super) fn dtype_sentence(name: &str) -> String {
    let kind = match name {
        _ if name.starts_with("F8") => " (FP8)",
        _ if name.starts_with("F4") || name.starts_with("F6") => " (microscaling)",
        _ => "",
    };
    format!("its type {name}{kind} cannot be read: F32, F16, BF16 and F64 can (dequantize the model first)")
}

/// Refuses a folder whose config says that its weights are quantized.
pub(super) fn refuse(folder: &Path) -> Result<(), OpenError> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(());
    }
    let config = read_json(&path)?;
    let section = |name: &str| config.get(name).filter(|section| section.is_object());
    let found = section("quantization_config").or_else(|| section("compression_config"));
    let nested =
        || config.get("text_config").and_then(|text| text.get("quantization_config")).filter(|section| section.is_object());
    match found.or_else(nested) {
        Some(section) => Err(OpenError::Side {
            path,
            what: format!("the model is quantized ({}), and only plain weights can be read: dequantize it first", name(section)),
        }),
        None => Ok(()),
    }
}

/// The format's name and width.
fn name(section: &Value) -> String {
    let method = section.get("quant_method").and_then(Value::as_str).map(|method| match method {
        "gptq" => "GPTQ",
        "awq" => "AWQ",
        "fp8" | "fbgemm_fp8" => "FP8",
        other => other,
    });
    let flag = |key: &str| section.get(key).and_then(Value::as_bool) == Some(true);
    let bits = section.get("bits").and_then(Value::as_u64);
    let bits = bits.or_else(|| flag("load_in_4bit").then_some(4)).or_else(|| flag("load_in_8bit").then_some(8));
    let bits = bits.map_or_else(String::new, |bits| format!(", {bits} bits"));
    format!("{}{bits}", method.unwrap_or("an unnamed format"))
}

/// The format that a tensor's name gives away, for checkpoints whose config does not say.
pub(super) fn mark(name: &str) -> Option<&'static str> {
    MARKS.iter().find(|(end, _)| name.ends_with(end)).map(|(_, format)| *format)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn formats_are_named() {
        for (section, expected) in [
            (json!({ "quant_method": "gptq", "bits": 4 }), "GPTQ, 4 bits"),
            (json!({ "quant_method": "bitsandbytes", "load_in_8bit": true }), "bitsandbytes, 8 bits"),
            (json!({ "quant_method": "compressed-tensors" }), "compressed-tensors"),
            (json!({}), "an unnamed format"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("config.json"), json!({ "quantization_config": section }).to_string()).unwrap();
            let error = refuse(folder.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("quantized ({expected})")), "{error}");
        }
        assert!(dtype_sentence("F8_E4M3").contains("(FP8)"));
        assert_eq!(mark("model.layers.0.q_proj.qweight"), Some("GPTQ or AWQ"));
        assert_eq!(mark("model.layers.0.q_proj.weight"), None);
    }
}
