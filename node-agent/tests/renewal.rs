//! A certificate of fifteen seconds under a real scheduler: renewed over the agent's own link before it ends, again and again.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

#[expect(dead_code, reason = "not all tests use all of it")]
mod agent;

use std::process::Command;
use std::time::Duration;

use agent::Agent;
use basalt_tests::loopback;
use basalt_tests::process::{self, COMMAND_TIMEOUT, Daemon, wait_for};
use node_agent::identity;
use node_agent::renewal::{Validity, now};

const SECONDS: u64 = 15;

#[test]
fn a_certificate_is_renewed_before_it_ends_and_the_link_outlives_it() {
    let scheduler = basalt_tests::program::built("scheduler").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("home");
    let address = loopback::address();
    let (listen, name) = (address.to_string(), address.ip().to_string());
    let mut init = Command::new(&scheduler);
    process::run(init.args(["init", "--listen", &listen, "--name", &name, "--dir"]).arg(&home), COMMAND_TIMEOUT)
        .unwrap();
    let config = home.join("scheduler.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}\nhost_certificate_seconds = {SECONDS}\n")).unwrap();
    let mut serve = Command::new(&scheduler);
    serve.args(["serve", "--config"]).arg(&config);
    let mut served = Daemon::start("scheduler", &serve, &directory.path().join("log")).unwrap();
    let answers = || Ok(std::net::TcpStream::connect(address).is_ok().then_some(()));
    served.wait_ready("its port", COMMAND_TIMEOUT, answers).unwrap();

    let mut token = Command::new(&scheduler);
    token.args(["token", "--host", "h1", "--dir"]).arg(&home);
    let token = process::run(&mut token, COMMAND_TIMEOUT).unwrap();
    let mut agent = Agent::new(None);
    agent.configure("[spec]\nsource = \"scheduler\"\n");
    let mut join = Command::new(env!("CARGO_BIN_EXE_node-agent"));
    join.arg("--config").arg(agent.path("agent.toml")).args(["join", "--name", "h1", "--tunnel", "192.0.2.1"]);
    join.args(["--scheduler", &format!("https://{listen}")]).env("BASALT_JOIN_TOKEN", token.trim());
    process::run(&mut join, COMMAND_TIMEOUT).unwrap();

    let state = agent.path("state");
    let certificate = || identity::certificate(&state).unwrap();
    let key = std::fs::read(state.join("identity/key.pem")).unwrap();
    let first = certificate();
    let first_end = Validity::of(&first).unwrap().end;
    agent.start();
    agent.wait("the link", COMMAND_TIMEOUT, |status| status["link"]["connected"] == true);
    let mut seen = vec![first];
    let renewed = || {
        let now = certificate();
        if !seen.contains(&now) {
            seen.push(now);
        }
        Ok((seen.len() == 3).then_some(()))
    };
    wait_for("two renewals", Duration::from_secs(60), renewed)
        .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    wait_for("the end of the first certificate", COMMAND_TIMEOUT, || Ok((now() > first_end).then_some(()))).unwrap();
    // A scheduler that starts anew makes the agent shake hands again: only a certificate that is good now passes.
    served.kill().unwrap();
    let mut served = Daemon::start("scheduler", &serve, &directory.path().join("log")).unwrap();
    served.wait_ready("its port", COMMAND_TIMEOUT, answers).unwrap();
    agent.wait("the link again", COMMAND_TIMEOUT, |status| status["link"]["connected"] == true);
    let doctor = agent.get("/v1/doctor").unwrap();
    let check = doctor["checks"].as_array().unwrap().iter().find(|check| check["name"] == "certificate").unwrap();
    assert_eq!(check["ok"], true, "{check}");
    assert_eq!(std::fs::read(state.join("identity/key.pem")).unwrap(), key, "the key stays where it is");
}
