//! Bytes a weight: what a weight of a matmul takes, in a file and as the NPU's copy.
//!
//! What counts of a file: matrices (two dimensions) that meet activations in a matmul, scales and padding of their
//! blocks included; so the output, or the token embedding where it is the output too, but not an embedding that is
//! only looked up, norms, biases, or expert layers, which the NPU does not take. What counts of the NPU: each weight
//! that it holds a copy of, padding included, over the weight's own K·N.

use crate::flops;
use crate::gguf::Gguf;
use crate::report::PluginReport;

/// Of a file's matmul weights; `None` if it has none, or one whose type is not known here.
pub fn of_file(head: &Gguf) -> Option<f64> {
    let matrices = head.tensors.iter().filter(|tensor| {
        flops::is_matmul_weight(head, tensor) && tensor.dims.iter().skip(2).all(|extent| *extent == 1)
    });
    let (mut bytes, mut weights) = (0.0, 0.0);
    for tensor in matrices {
        bytes += tensor.bytes()? as f64;
        weights += tensor.dims.iter().map(|extent| *extent as f64).product::<f64>();
    }
    (weights > 0.0).then(|| bytes / weights)
}

/// Of the NPU's copies; `None` if the report speaks of none.
pub fn of_report(report: &PluginReport) -> Option<f64> {
    let held = || report.tensors.iter().filter(|tensor| tensor.npu_bytes > 0);
    let bytes: f64 = held().map(|tensor| tensor.npu_bytes as f64).sum();
    let weights: f64 = held().map(|tensor| tensor.k as f64 * tensor.n as f64).sum();
    (weights > 0.0).then(|| bytes / weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flops::tests::tiny_model;
    use crate::gguf::Tensor;

    #[test]
    fn the_files_matmul_weights_count_and_nothing_else() {
        // The tied embedding, 800 weights of F32; 2 × (64 + 128) of the layers, here of Q8_0: 34 bytes for 32.
        let mut model = tiny_model();
        for tensor in &mut model.tensors {
            if tensor.name.starts_with("blk.") {
                tensor.dtype = 8;
            }
        }
        let expected = (800.0 * 4.0 + 384.0 * 34.0 / 32.0) / (800.0 + 384.0);
        assert_eq!(of_file(&model), Some(expected));

        // An embedding that is only looked up does not count, and experts do not.
        let tensor = |name: &str, dims: &[u64], dtype| Tensor {
            name: name.into(),
            dims: dims.into(),
            dtype,
            offset: 0,
        };
        model.tensors.push(tensor("blk.1.ffn_up_exps.weight", &[8, 16, 64], 0));
        assert_eq!(of_file(&model), Some(expected));
        model.tensors.push(tensor("output.weight", &[8, 4], 1));
        assert_eq!(of_file(&model), Some((32.0 * 2.0 + 384.0 * 34.0 / 32.0) / (32.0 + 384.0)));

        model.tensors.push(tensor("blk.1.attn_k.weight", &[8, 8], 9999));
        assert_eq!(of_file(&model), None, "a type whose size is not known");
        assert_eq!(of_file(&Gguf::default()), None);
    }

    #[test]
    fn only_weights_that_the_npu_holds_count() {
        let report = |tensors: &str| -> PluginReport {
            serde_json::from_str(&format!("{{\"tensors\": [{tensors}]}}")).unwrap()
        };
        let held = r#"{"name": "a", "k": 64, "n": 4, "npu_bytes": 300}"#;
        let others = r#"{"name": "b", "k": 64, "n": 4, "npu_bytes": 0}, {"name": "c", "k": 9, "n": 9}"#;
        assert_eq!(of_report(&report(&format!("{held}, {others}"))), Some(300.0 / 256.0));
        assert_eq!(of_report(&report(others)), None);
        assert_eq!(of_report(&report("")), None);
    }
}
