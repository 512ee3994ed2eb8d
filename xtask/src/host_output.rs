//! What llama-completion prints: the text on stdout, everything else on stderr.

use crate::flops::Tokens;
use crate::process::Tail;

/// What the host prints after the text when the model ended it by itself.
const END_MARK: &[u8] = b"[end of text]";

/// Lets the text through as it comes, but not the host's end mark and blank lines after it.
#[derive(Debug, Default)]
pub struct TextFilter {
    /// What may be the beginning of the end.
    held: Vec<u8>,
    text: Vec<u8>,
}

impl TextFilter {
    /// Takes what came and gives what is surely text.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend(bytes);
        let mut sure = 0;
        while !may_be_end(&self.held[sure..]) {
            sure += 1;
        }
        let out: Vec<u8> = self.held.drain(..sure).collect();
        self.text.extend(&out);
        out
    }

    /// The last of the text, once nothing more comes.
    pub fn finish(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        let rest = held.trim_ascii();
        // Held as the beginning of a mark that then never came.
        if rest.is_empty() || rest == END_MARK {
            return Vec::new();
        }
        let out = held.trim_ascii_end().to_vec();
        self.text.extend(&out);
        out
    }

    /// All of the text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }
}

/// Blanks, then the end mark or a beginning of it, then blanks.
fn may_be_end(bytes: &[u8]) -> bool {
    let rest = bytes.trim_ascii_start();
    END_MARK.starts_with(rest)
        || rest.strip_prefix(END_MARK).is_some_and(|after| after.trim_ascii().is_empty())
}

/// What the host said about its own speed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Timing {
    count: u64,
    per_second: f64,
}

/// The host's stderr, line by line.
#[derive(Debug, Default)]
pub struct HostLog {
    tail: Tail,
    /// The last line of the plugin itself.
    plugin: Option<String>,
    /// The last complaint of the host's loader about a backend.
    load_failure: Option<String>,
    /// Whether the host said that it loaded the plugin.
    is_loaded: bool,
    prompt: Timing,
    decode: Timing,
    sampled: Option<u64>,
}

impl HostLog {
    /// Takes a line; true if it is one of the plugin's, which the user should see.
    pub fn push(&mut self, line: &str) -> bool {
        self.tail.push(line);
        if let Some(at) = line.find("load_backend: ") {
            if line.contains("failed") {
                self.load_failure = Some(line[at..].trim_end().to_owned());
            }
            self.is_loaded |= line.contains("loaded RKNPU backend");
        }
        if line.contains("prompt eval time =") {
            self.prompt = timing(line).unwrap_or_default();
        } else if line.contains("eval time =") {
            self.decode = timing(line).unwrap_or_default();
        } else if line.contains("samplers time =") {
            self.sampled = timing(line).map(|timing| timing.count);
        }
        let is_plugins = line.contains("ggml-rknpu:");
        if let Some(at) = line.find("ggml-rknpu:") {
            self.plugin = Some(line[at..].trim_end().to_owned());
        }
        is_plugins
    }

    /// The tokens of the run.
    pub fn tokens(&self) -> Tokens {
        let prompt = self.prompt.count;
        // The samplers see each token of the prompt and each generated one. The host's count of runs is
        // never less than one, so it cannot tell a single token from two; older hosts have nothing else.
        let generated = match self.sampled {
            Some(sampled) => sampled.saturating_sub(prompt),
            None => self.decode.count + 1,
        };
        Tokens { prompt, generated }
    }

    /// Prompt tokens a second.
    pub fn prompt_per_second(&self) -> f64 {
        self.prompt.per_second
    }

    /// Generated tokens a second.
    pub fn decode_per_second(&self) -> f64 {
        self.decode.per_second
    }

    /// Why the plugin gave the host no device, as far as the log tells; `None` if it may have given one.
    pub fn why_no_device(&self) -> Option<String> {
        if let Some(line) = self.plugin.clone().or_else(|| self.load_failure.clone()) {
            return Some(line);
        }
        (!self.is_loaded).then(|| "the host never said that it loaded the plugin".to_owned())
    }

    /// The last lines.
    pub fn into_tail(self) -> Vec<String> {
        self.tail.into_lines()
    }
}

/// Reads `… = 50.36 ms / 15 tokens ( 3.36 ms per token, 297.85 tokens per second)`.
fn timing(line: &str) -> Option<Timing> {
    let (_, after) = line.split_once("ms /")?;
    let count = after.split_whitespace().next()?.parse().ok()?;
    let rate =
        after.split_once("per token,").and_then(|(_, rate)| rate.split_whitespace().next()?.parse().ok());
    Some(Timing { count, per_second: rate.filter(|rate: &f64| rate.is_finite()).unwrap_or(0.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that comes out when the bytes come in pieces of each size.
    fn filtered(bytes: &[u8]) -> String {
        let mut texts: Vec<String> = (1..=bytes.len().max(1))
            .map(|size| {
                let mut filter = TextFilter::default();
                let mut out = Vec::new();
                for piece in bytes.chunks(size) {
                    out.extend(filter.push(piece));
                }
                out.extend(filter.finish());
                assert_eq!(String::from_utf8_lossy(&out), filter.text());
                filter.text()
            })
            .collect();
        texts.dedup();
        assert_eq!(texts.len(), 1, "the pieces make no difference");
        texts.remove(0)
    }

    #[test]
    fn the_end_mark_is_not_text_and_all_else_is() {
        assert_eq!(filtered(b"Hello, you [end of text]\n\n\n"), "Hello, you");
        assert_eq!(filtered(b"Hello\n\n"), "Hello");
        assert_eq!(filtered(b"a [end of the] b [end of text] c\n"), "a [end of the] b [end of text] c");
        assert_eq!(filtered(b"a [end"), "a [end");
        assert_eq!(filtered("größer\n".as_bytes()), "größer");
        assert_eq!(filtered(b" [end of text]\n"), "");
        assert_eq!(filtered(b""), "");
    }

    #[test]
    fn text_is_not_held_back_longer_than_needed() {
        let mut filter = TextFilter::default();
        assert_eq!(filter.push(b"Hello"), b"Hello");
        assert_eq!(filter.push(b" "), b"");
        assert_eq!(filter.push(b"you"), b" you");
    }

    fn log(lines: &[&str]) -> HostLog {
        let mut log = HostLog::default();
        for line in lines {
            log.push(line);
        }
        log
    }

    #[test]
    fn tokens_and_speeds_come_from_the_hosts_figures() {
        let new = log(&[
            "0.1 I common_perf_print:    samplers time =       0.77 ms /    39 tokens",
            "0.1 I common_perf_print: prompt eval time =  50.36 ms /    15 tokens (    3.36 ms per token,   297.85 tokens per second)",
            "0.1 I common_perf_print:        eval time = 161.84 ms /    23 runs   (    7.04 ms per token,   142.11 tokens per second)",
        ]);
        assert_eq!(new.tokens(), Tokens { prompt: 15, generated: 24 });
        assert_eq!((new.prompt_per_second(), new.decode_per_second()), (297.85, 142.11));
        let older = log(&[
            "llama_perf_context_print: prompt eval time = 1 ms / 5 tokens ( 1 ms per token, 2 tokens per second)",
            "llama_perf_context_print:        eval time = 0.00 ms / 7 runs ( 1 ms per token, inf tokens per second)",
        ]);
        assert_eq!(older.tokens(), Tokens { prompt: 5, generated: 8 });
        assert_eq!(older.decode_per_second(), 0.0);
    }

    #[test]
    fn the_reason_for_no_device_is_the_plugins_own_line_first() {
        let failed = "0.0 E load_backend: failed to find ggml_backend_init in /p.so";
        assert_eq!(
            log(&[failed]).why_no_device().unwrap(),
            "load_backend: failed to find ggml_backend_init in /p.so"
        );
        let both = log(&["ggml-rknpu: no NPU library", failed]);
        assert_eq!(both.why_no_device().unwrap(), "ggml-rknpu: no NPU library");
        assert!(log(&[]).why_no_device().unwrap().contains("never said"));
        assert_eq!(log(&["I load_backend: loaded RKNPU backend from /p.so"]).why_no_device(), None);
    }
}
