//! The command line: what it refuses and what it answers without a running gateway.

use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

fn run(folder: &Path, args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edd-gateway"));
    command
        .args(args)
        .current_dir(folder)
        .env_clear()
        .envs(variables.iter().copied());
    command.output().expect("it starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_bad_flag_and_variable_is_reported_at_once_with_exit_code_64() {
    let folder = TempDir::new().unwrap();
    let args = [
        "serve",
        "--http-addr=nowhere",
        "--ports=8100-8000",
        "--connect-timeout=3",
        "--container-cidrs=10.0.0.0/8,x",
        "--nats-url=ftp://localhost",
        "--public-https-port=0",
        "--database-url=mysql://x",
        "--log-format=xml",
        "--ssh-buffer-limit=0",
        "--ssh-keys=somewhere",
        "--ssh-max-startups=10:30",
        "--ssh-max-startups-per-ip=0",
        "--ssh-record=C1",
        "--ssh-recording-max=0",
    ];
    let variables = [
        ("EDD_GATEWAY_DRAIN_TIMEOUT", "soon"),
        ("EDD_GATEWAY_WORKERS", "-1"),
    ];
    let output = run(folder.path(), &args, &variables);
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    let lines = stderr(&output);
    for flag in [
        "--http-addr",
        "--ports",
        "--connect-timeout",
        "--container-cidrs",
        "--nats-url",
        "--public-https-port",
        "--database-url",
        "--log-format",
        "--ssh-buffer-limit",
        "--ssh-keys",
        "--ssh-max-startups (",
        "--ssh-max-startups-per-ip",
        "--ssh-record (",
        "--ssh-recording-max",
        "EDD_GATEWAY_DRAIN_TIMEOUT",
        "EDD_GATEWAY_WORKERS",
    ] {
        assert!(
            lines.lines().any(|line| line.contains(flag)),
            "{flag} in:\n{lines}"
        );
    }
    assert_eq!(lines.lines().count(), 17, "{lines}");
    assert!(
        std::fs::read_dir(folder.path()).unwrap().next().is_none(),
        "nothing was written"
    );
}

/// C18: two listeners raced for one port, the loser only logged.
#[test]
fn a_fixed_listener_inside_the_dynamic_range_is_refused() {
    let folder = TempDir::new().unwrap();
    let output = run(folder.path(), &["--http-addr=0.0.0.0:8080"], &[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("0.0.0.0:8080 lies inside --ports 8000-8100"));
    let output = run(folder.path(), &["--flux-capacitor"], &[]);
    assert_eq!(output.status.code(), Some(64), "an unknown flag");
}

#[test]
fn help_and_version_exit_0() {
    let folder = TempDir::new().unwrap();
    for args in [
        &["--help"][..],
        &["--version"],
        &["serve", "--help"],
        &["check", "--help"],
    ] {
        let output = run(folder.path(), args, &[]);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(stdout(&output).contains("edd-gateway"), "{args:?}");
    }
}

#[test]
fn a_start_without_usable_routes_and_without_a_last_good_table_exits_64() {
    let folder = TempDir::new().unwrap();
    let any = "127.0.0.1:0";
    let addresses = [
        "--http-addr",
        any,
        "--https-addr",
        any,
        "--ssh-addr",
        any,
        "--admin-addr",
        any,
    ];
    let mut args = vec!["--ports=61998", "--ports-addr=127.0.0.1"];
    args.extend(addresses);
    let output = run(folder.path(), &args, &[]);
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("routes.yaml"),
        "{}",
        stderr(&output)
    );

    std::fs::write(
        folder.path().join("routes.yaml"),
        "routes:\n- host: a\n- target: b\n",
    )
    .unwrap();
    let output = run(folder.path(), &args, &[]);
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("routes.yaml:2:3: `target` is missing"),
        "{}",
        stderr(&output)
    );
    assert!(
        stderr(&output).contains("routes.yaml:3:3: `host` is missing"),
        "{}",
        stderr(&output)
    );
}

/// R5: a listener that could not bind was only logged.
#[test]
fn taken_ports_are_all_named_in_one_line_with_exit_code_1() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("routes.yaml"), "routes: []\n").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dynamic = format!("--ports={}", taken.local_addr().unwrap().port());
    let free = "127.0.0.1:0";
    let args = [
        "--http-addr",
        free,
        "--https-addr",
        "127.0.0.2:0",
        "--ssh-addr",
        free,
        "--admin-addr",
        free,
        "--ports-addr=127.0.0.1",
        &dynamic,
    ];
    let output = run(folder.path(), &args, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains(&address), "{}", stderr(&output));
}

#[test]
fn check_prints_every_mistake_with_its_place() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("routes.yaml");
    std::fs::write(&file, "routes:\n- host: a.test\n  target: b:1\n").unwrap();
    let output = run(folder.path(), &["check"], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(
        stdout(&output),
        "routes.yaml: 1 routes of 1 hosts, no mistakes\n"
    );

    std::fs::write(&file, "routes:\n- host: a.test\n  target: b\n  colour: 1\n").unwrap();
    let output = run(folder.path(), &["check", "--routes", "routes.yaml"], &[]);
    assert_eq!(output.status.code(), Some(1));
    let lines = stdout(&output);
    assert!(
        lines.starts_with("routes.yaml:3:11: target: `b` is not host:port\n"),
        "{lines}"
    );
    assert!(
        lines.contains("\nroutes.yaml:4:3: unknown key `colour`"),
        "{lines}"
    );

    let output = run(folder.path(), &["check", "--routes", "absent.yaml"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("absent.yaml"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn explain_answers_from_a_file_without_a_running_gateway() {
    let folder = TempDir::new().unwrap();
    let routes =
        "routes:\n- host: a.test\n  target: b:1\n- host: a.test\n  path: /x\n  target: c:1\n";
    std::fs::write(folder.path().join("r.yaml"), routes).unwrap();
    let args = ["explain", "--routes", "r.yaml", "https://a.test/x/y"];
    let output = run(folder.path(), &args, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for part in [
        "proxied to c:1 as /x/y",
        "static route a.test/x",
        "r.yaml:4",
        "a.test/ (r.yaml:2)",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    for bad in [
        &["explain", "tcp", "x"][..],
        &["explain", "a.test"],
        &["explain", "x", "y"],
    ] {
        assert_eq!(
            run(folder.path(), bad, &[]).status.code(),
            Some(64),
            "{bad:?}"
        );
    }
    // A port that nobody listens on: one line that says whom it asked.
    let args = ["explain", "--admin-addr", "127.0.0.1:1", "ssh", "abc"];
    let output = run(folder.path(), &args, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("127.0.0.1:1"),
        "{}",
        stderr(&output)
    );
    assert_eq!(stderr(&output).lines().count(), 1);
}
