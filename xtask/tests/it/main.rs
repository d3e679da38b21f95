//! The command line as a shell sees it, and who owns what in the repository.

mod lessons;
mod ownership;

use std::process::{Command, Output};

fn xtask(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(args)
        .output()
        .expect("xtask runs")
}

#[test]
fn a_bad_command_line_exits_64_and_shows_the_usage() {
    for args in [
        &["nope"][..],
        &["up", "--chekc"],
        &["up", "--data"],
        &["test", "x"],
        &["bench", "y"],
    ] {
        let output = xtask(args);
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Usage: cargo xtask"), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn help_exits_0() {
    for args in [&[][..], &["help"], &["--help"]] {
        let output = xtask(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        for command in [
            "up [--data DIR]",
            "up --check",
            "test ",
            "bench propagation",
        ] {
            assert!(
                said.contains(command),
                "{args:?} says nothing of {command}: {said}"
            );
        }
    }
}

#[test]
fn a_folder_that_no_tour_made_is_not_wiped() {
    let folder = std::env::temp_dir().join(format!("edd-xtask-precious-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let precious = folder.join("precious");
    std::fs::write(&precious, "mine").expect("written");
    // Refused before anything is fetched or built.
    let output = xtask(&["up", "--check", "--data", &folder.to_string_lossy()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("choose another folder"), "{said}");
    assert_eq!(
        std::fs::read_to_string(&precious).expect("still there"),
        "mine"
    );
    std::fs::remove_dir_all(&folder).expect("removed");
}
