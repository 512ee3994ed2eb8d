//! What the host says of the divergence of two models.

/// The mean KL divergence that `llama-perplexity --kl-divergence` prints.
pub fn mean_kl(text: &str) -> f64 {
    text.lines()
        .find(|line| line.trim_start().starts_with("Mean") && line.contains("KLD"))
        .and_then(|line| line.split(':').nth(1)?.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("no mean KLD:\n{text}"))
}
