//! The findings for people.

use std::fmt::Write as _;

use ggml_rknpu::probe::full::Outcome;

use crate::probe::Probe;
use crate::report::{Report, State};

fn mark(state: State) -> char {
    match state {
        State::Well => '✓',
        State::Wrong => '✗',
        State::Unknown => '–',
    }
}

/// The whole report, a line an item, with the advice below what is wrong.
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let mut line = |text: String| {
        let _ = writeln!(out, "{}", text.trim_end());
    };
    let chip = report.chip.map_or("no known chip".to_owned(), str::to_uppercase);
    let emulated = if report.emulated { "emulated " } else { "" };
    line(format!("rknpu-doctor {}: {emulated}{chip}", report.doctor));
    for section in &report.sections {
        line(String::new());
        line(match section.title {
            "Times" => format!("Times ({})", report.times),
            title => title.to_owned(),
        });
        let width = section.items.iter().map(|item| item.name.chars().count()).max().unwrap_or(0);
        for item in &section.items {
            let believed =
                item.believed.as_ref().map(|believed| format!("{believed} · ")).unwrap_or_default();
            line(format!("  {} {:width$}  {believed}{}", mark(item.state), item.name, item.found));
            if let Some(advice) = &item.advice {
                line(format!("    {:width$}  → {advice}", ""));
            }
        }
    }
    line(String::new());
    if !report.differences.is_empty() {
        line(format!("This NPU differs from our table of facts in: {}.", report.differences.join(", ")));
    }
    line(format!("{}.", report.verdict));
    out
}

/// The contract's checks, a line each, and the count; whether none failed.
pub fn contract(probe: &Probe) -> bool {
    let (mut passed, mut failed, mut unknown) = (0, 0, 0);
    for (check, outcome) in &probe.results {
        let (mark, count) = match outcome {
            Outcome::Pass(_) => ('✓', &mut passed),
            Outcome::Fail(_) => ('✗', &mut failed),
            Outcome::Unknown(_) => ('–', &mut unknown),
        };
        *count += 1;
        println!("{mark} {:16} {} · {}", check.name, check.believed, outcome.found());
    }
    if let Some(why) = &probe.refused {
        failed += 1;
        println!("✗ {:16} {why}", "library");
    } else if probe.results.is_empty() {
        failed += 1;
        println!("✗ {:16} the chip is not known: name it by --soc", "chip");
    }
    println!("{passed} passed; {failed} failed; {unknown} unknown");
    failed == 0
}
