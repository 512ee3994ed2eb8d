//! The doctor and the quick probe against an emulator with a quirk: each is found, where it is, and nothing else.

mod common;

use common::{doctor, item, json};
use serde_json::{json, Value};

/// The report, and the checks of the contract that failed, of an emulated RK3588 with `faults`.
fn with(faults: &str) -> (Value, Vec<String>) {
    let (report, code) = json(doctor(&["--json", "--no-times"]).env("RKNPU_EMU_FAULTS", faults));
    assert_eq!(code, 1, "{faults}");
    let differences = report["differences"].as_array().expect("a list").iter();
    let names = differences.filter_map(Value::as_str).map(str::to_owned).collect();
    (report, names)
}

#[test]
fn each_quirk_is_found_where_it_is() {
    let (report, wrong) = with("views");
    assert_eq!(wrong, ["memory.views.i8", "memory.views.f16"]);
    assert_eq!(report["quick"]["views"], false);
    assert_eq!(report["quick"]["native_b"], true);

    let (report, wrong) = with("native-b");
    assert!(
        wrong.iter().all(|name| name.starts_with("layout.b.") || name.starts_with("layout.all.")),
        "{wrong:?}"
    );
    assert_eq!((&report["quick"]["native_b"], &report["quick"]["native_ac"]), (&json!(false), &json!(true)));

    let (report, wrong) = with("native-ac");
    assert!(!wrong.contains(&"layout.b.i8".to_owned()) && wrong.contains(&"layout.c.f16".to_owned()));
    assert!(item(&report, "layout.a.i8")["found"]
        .as_str()
        .expect("text")
        .ends_with("(columns/8, rows, 8) fits"));
    assert_eq!((&report["quick"]["native_b"], &report["quick"]["native_ac"]), (&json!(true), &json!(false)));

    for (faults, cores) in [("core=0", [false, true, true]), ("run:wrong=2", [true, true, false])] {
        let (report, wrong) = with(faults);
        assert_eq!(wrong, [format!("core.{}", cores.iter().position(|good| !good).expect("one"))]);
        assert_eq!(report["quick"]["cores"], json!(cores), "{faults}");
        assert_eq!(report["quick"]["views"], true);
    }

    let (report, wrong) = with("i8=off");
    assert_eq!(wrong, ["type.2"]);
    // In the order of `MatmulType::ALL`: i8, f16, i4 and the two mixed ones, which RK3588 lacks.
    assert_eq!(report["quick"]["types"], json!([false, true, true, false, false]));
}
