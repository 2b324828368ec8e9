//! The command line as an operator meets it: the real program against a real scheduler, every word that it prints held against golden files.
//!
//! Identities are drawn anew in each run and stand as `<id-1>`, `<id-2>`, … in the order in which they first appear.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use basalt_tests::{loopback, process};
use clap::Parser;
use scheduler::cli::{Arguments, run};

const START_LIMIT: Duration = Duration::from_secs(30);
/// The length of an identity's text (RFC 9562).
const ID_LENGTH: usize = 36;

/// Names the configuration that [`scheduler_process`] serves.
const SERVE: &str = "BASALT_TEST_SERVE";

/// A scheduler of its own, ended with this.
struct Cloud {
    home: tempfile::TempDir,
    process: Child,
}

/// Not a test of its own: the process that [`Cloud`] starts.
#[test]
fn scheduler_process() {
    let Some(config) = std::env::var_os(SERVE) else { return };
    run(arguments(&["serve", "--config", config.to_str().unwrap()])).unwrap();
}

fn arguments(words: &[&str]) -> Arguments {
    Arguments::try_parse_from([&["scheduler"], words].concat()).unwrap()
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // It may have ended already.
        self.process.kill().and_then(|()| self.process.wait()).ok();
    }
}

impl Cloud {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let address = loopback::address();
        let (dir, name, listen) = (home.path().join("cloud"), address.ip().to_string(), address.to_string());
        run(arguments(&["init", "--dir", dir.to_str().unwrap(), "--name", &name, "--listen", &listen])).unwrap();
        let log = File::create(home.path().join("log")).unwrap();
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "scheduler_process", "--nocapture"])
            .env(SERVE, dir.join("scheduler.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut cloud = Self { home, process };
        let look = || match cloud.process.try_wait()? {
            Some(status) => anyhow::bail!("it ended, {status}"),
            None => Ok(TcpStream::connect_timeout(&address.into(), START_LIMIT).ok()),
        };
        let log = cloud.home.path().join("log");
        let said = || std::fs::read_to_string(log).unwrap_or_default();
        process::wait_for("the scheduler", START_LIMIT, look).unwrap_or_else(|error| panic!("{error:#}\n{}", said()));
        cloud
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join("cloud").join(name)
    }

    /// Runs one command line and writes down what a terminal would show, with the exit code.
    fn type_in(&self, line: &str, transcript: &mut String) {
        let done = Command::new(env!("CARGO_BIN_EXE_flowctl"))
            .args(line.split_whitespace())
            .env("BASALT_CLIENT", self.file("client.toml"))
            .env("BASALT_AGENT", self.file("no-agent.sock"))
            .output()
            .unwrap();
        writeln!(transcript, "$ flowctl {line}").unwrap();
        transcript.push_str(&String::from_utf8(done.stdout).unwrap());
        transcript.push_str(&String::from_utf8(done.stderr).unwrap());
        if done.status.code() != Some(0) {
            writeln!(transcript, "[exit {}]", done.status.code().unwrap()).unwrap();
        }
    }

    /// The transcript of some command lines, the same in every run.
    fn transcript(&self, lines: &str) -> String {
        let mut transcript = String::new();
        lines.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(|line| {
            self.type_in(line, &mut transcript);
        });
        without_ids(&transcript.replace(self.home.path().to_str().unwrap(), "<home>"))
    }
}

/// Numbers identities in the order in which they appear; columns keep their places.
fn without_ids(text: &str) -> String {
    let mut known = BTreeMap::new();
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        match rest.get(..ID_LENGTH).filter(|word| is_id(word)) {
            Some(id) => {
                let count = known.len() + 1;
                let number = known.entry(id.to_owned()).or_insert(count);
                write!(out, "<id-{number}>").unwrap();
                rest = &rest[ID_LENGTH..];
            }
            None => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}

fn is_id(word: &str) -> bool {
    word.char_indices().all(|(at, letter)| match at {
        8 | 13 | 18 | 23 => letter == '-',
        _ => letter.is_ascii_hexdigit() && !letter.is_ascii_uppercase(),
    })
}

/// Holds text against the golden file, or writes the file when `UPDATE_GOLDEN` is set.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    let different = want.lines().zip(text.lines()).find(|(want, text)| want != text);
    assert!(want == text, "{} differs, first at {different:?}; UPDATE_GOLDEN=1 writes it anew", path.display());
}

const BUILD: &str = "
    network create blue --mtu 1450
    network create green
    subnet create blue4 --network blue --cidr 10.10.1.0/24 --dns 10.10.1.53
    subnet create blue6 --network blue --cidr fd00:1::/64 --domain blue.example.org
    subnet create green4 --network green --cidr 10.10.2.0/24
    group create web
    group create bare --empty
    group allow web ingress --protocol tcp --port 80-81
    group allow web ingress --protocol icmp --remote-group web
    address-group create office 192.0.2.0/24 2001:db8::7
    group allow web ingress --protocol tcp --port 443 --remote-address-group office
    group allow bare egress --protocol 112 --prefix 10.10.1.0/24
    router create edge
    router attach edge blue4
    router attach edge green4
    port create p1 --network blue --address 10.10.1.20 --mac 02:00:00:00:00:01 --group web
    port create p2 --network green --mac 02:00:00:00:00:02 --no-port-security
    port create p1-7 --network green --trunk p1 --vlan 7 --mac 02:00:00:00:00:01
    port set p1 --allowed-pair 10.10.1.99/32
    port create eye --network green --address 10.10.2.200 --mac 02:00:00:00:00:0e
    port set p1 --mirror-to eye --mirror-direction in
    port set p2 --mirror-to eye
    port set p2 --no-mirror
    flavor create micro --vcpus 1 --memory 256
    volume create data --size 64 --backend rbd
";

const LISTS: &str = "
    network list
    subnet list
    group list
    group rules web
    address-group list
    router list
    port list
    flavor list
    volume list
    image list
    vm list
    host list
";

/// A router led out by IPv6.
const NORTH: &str = "
    network set outside --routed 2001:db8:100::/40 --routed 2001:db8:9::/48
    network set blue --routed 2001:db8:100::/40
    network set outside --routed 2001:db8:100::/16
    subnet create out6 --network outside --cidr 2001:db8:ffff::/64
    network create routed
    subnet create routed6 --network routed --cidr 2001:db8:100:1::/64
    router attach edge routed6
    router set-ipv6-gateway edge out4
    router set-ipv6-gateway edge out6 --address 2001:db8:ffff::28
    router create other
    network create shadow
    subnet create shadow6 --network shadow --cidr 2001:db8:100::/56
    router attach other shadow6
    router set-ipv6-gateway other out6
    network set outside --no-routed
    router set-ipv6-gateway other out6 --address 2001:db8:ffff::29
    network set outside --routed 2001:db8:100::/40
    router clear-ipv6-gateway other
    router clear-ipv6-gateway other
    network set outside --routed 2001:db8:100::/40
";

/// What a person sees of a small cloud without a host, from its making to its end.
#[test]
fn a_cloud_in_tables() {
    let cloud = Cloud::start();
    let shows = "
        network show blue
        address-group add office 198.51.100.7 198.51.100.0/24
        address-group remove office 192.0.2.0/24
        address-group show office
        address-group delete office
        load-balancer create front --subnet blue4 --address 10.10.1.100
        load-balancer add-listener front tcp:80
        load-balancer add-listener front udp:53 --session-persistence source-ip --connection-limit 500
        load-balancer set-listener front tcp:80 --connection-limit 20
        load-balancer add-member front tcp:80 --address 10.10.1.20 --port 8080
        load-balancer add-member front tcp:80 --address 10.10.2.40 --weight 2
        load-balancer set-member front tcp:80 --address 10.10.2.40 --weight 0
        load-balancer set-monitor front tcp:80 --type http --url-path /live --expected-codes 200-299 --delay 10
        load-balancer set-monitor front udp:53 --type udp-connect --disable
        load-balancer members front
        load-balancer list
        load-balancer remove-member front tcp:80 --address 10.10.2.40
        load-balancer remove-monitor front udp:53
        load-balancer set-listener front tcp:80 --no-connection-limit
        load-balancer remove-listener front udp:53
        load-balancer show front
        load-balancer delete front
        router show edge
        network create outside --provider-network-type vlan --provider-physical-network dc --provider-segment 100
        subnet create out4 --network outside --cidr 203.0.113.0/24
        router set-gateway edge out4 --no-snat
        router set-gateway edge out4
        router add-port-forwarding edge --protocol tcp --external-port 8080 --port p1 --internal-port 80
        router add-port-forwarding edge --protocol udp --external-port 8080 --port p1 --internal-port 53
        router add-port-forwarding edge --protocol tcp --external-port 8080 --port p1 --internal-port 81
        router port-forwardings edge
        router set-gateway edge out4 --no-snat
        router add-floating-ip edge p1 --address 203.0.113.50
        router remove-port-forwarding edge --protocol tcp --external-port 8080
        router remove-port-forwarding edge --protocol udp --external-port 8080
        router add-floating-ip edge p1 --address 203.0.113.50
        router add-port-forwarding edge --protocol tcp --external-port 8080 --port p1 --internal-port 80
        router floating-ips edge
        firewall-policy create inward
        firewall-policy create outward
        firewall-policy add-rule inward web --action allow --protocol tcp --destination-port 80:81 --destination-ip-address 10.10.1.20/32
        firewall-policy add-rule inward office --action deny --source-ip-address 192.0.2.0/24 --insert-before web
        firewall-policy add-rule inward names --action allow --protocol udp --destination-port 53 --insert-after office --disabled
        firewall-policy add-rule inward six --action allow --ip-version 6 --source-ip-address 2001:db8::/32
        firewall-policy add-rule inward web --action allow
        firewall-policy add-rule inward bad --action allow --source-ip-address 10.10.1.20/8
        firewall-policy add-rule inward bad --action allow --protocol icmp --destination-port 80
        firewall-policy add-rule inward bad --action allow --protocol tcp --destination-port 81:80
        firewall-policy add-rule inward bad --action allow --insert-after nobody
        firewall-policy set-rule inward names --enabled true
        firewall-policy remove-rule inward six
        firewall-policy rules inward
        router set-firewall edge --ingress inward
        router set-firewall edge --ingress inward --egress nobody
        firewall-policy delete inward
        router clear-firewall edge
        router clear-firewall edge
        firewall-policy delete inward
        firewall-policy list
    ";
    let ends = "
        router clear-gateway edge
        router remove-floating-ip edge 203.0.113.50
        router clear-gateway edge
        port show p1
        vm launch v1 --flavor micro --volume data --port p1
        vm list
        vm delete v1
        router detach edge green4
        port show p1-7
        port delete p1-7
        port delete p2
        network delete green
        subnet list
    ";
    golden("tables.txt", &cloud.transcript(&[BUILD, LISTS, shows, NORTH, ends].concat()));
}

/// What a program sees of the same.
#[test]
fn a_cloud_in_json() {
    let cloud = Cloud::start();
    cloud.transcript(BUILD);
    let lists: String =
        LISTS.lines().map(|line| format!("{line} --output json\n")).filter(|line| line.len() > 20).collect();
    golden("json.txt", &cloud.transcript(&lists));
}

/// Each way to fail has its words and its exit code.
#[test]
fn failures_and_their_codes() {
    let cloud = Cloud::start();
    cloud.transcript(BUILD);
    let lines = "
        network create blue
        network create wide --mtu 99999
        subnet create off --network blue --cidr 10.10.1.1/24
        subnet create again --network blue --cidr 10.10.1.128/25
        port create p3 --network none
        port create p3 --network blue --trunk p1 --vlan 7
        port create p3 --network blue --trunk p1-7 --vlan 8
        port create p3 --network blue --trunk p1 --vlan 4095
        port create p3 --network blue --trunk p1
        port create p3 --network blue --mirror-to p1
        port create p3 --network blue --mirror-to none
        port bind none --host none
        port bind p1 --host none
        port bind p1-7 --host none
        port bind p1
        port unbind p1
        port unbind p1-7
        port set eye --mirror-to p2
        port set p2 --mirror-to p2
        port set p2 --mirror-direction in
        port set p2 --mirror-to eye --no-mirror
        port delete eye
        port delete p1
        group allow web ingress --protocol tcp --port 90-80
        group allow web ingress --remote-group none
        group allow web ingress --remote-address-group none
        group allow web ingress --remote-address-group office --remote-group web
        address-group create empty
        address-group create off 192.0.2.1/24
        address-group create twice 192.0.2.0/24 192.0.2.0/24
        address-group create words everywhere
        address-group add office 192.0.2.0/24
        address-group remove office 10.0.0.0/8
        address-group remove office 192.0.2.0/24 2001:db8::7
        address-group delete office
        load-balancer create front --subnet none
        load-balancer create front --subnet blue4 --address 10.10.9.9
        load-balancer create front --subnet blue4 --address 10.10.1.20
        load-balancer create front --subnet blue4 --address 10.10.1.1
        load-balancer create front --subnet blue4 --address 10.10.1.100
        load-balancer add-listener front tcp
        load-balancer add-listener front sctp:80
        load-balancer add-listener front tcp:80
        load-balancer add-listener front tcp:80
        load-balancer set-listener front tcp:80 --connection-limit 0
        load-balancer set-listener front tcp:80
        load-balancer add-member front tcp:80 --address fd00::1
        load-balancer add-member front tcp:80 --address 192.0.2.1
        load-balancer add-member front tcp:80 --address 10.10.1.20 --weight 257
        load-balancer add-member front tcp:81 --address 10.10.1.20
        load-balancer remove-member front tcp:80 --address 10.10.1.20
        load-balancer set-monitor front tcp:80 --type udp-connect
        load-balancer set-monitor front tcp:80 --type ping --timeout 9
        load-balancer set-monitor front tcp:80 --type ping --url-path /
        load-balancer remove-monitor front tcp:81
        subnet delete blue4
        load-balancer delete front
        load-balancer show front
        network show none
        network delete blue
        vm launch v2 --flavor micro
        vm console v1
        status
        flow diff
        flow nonsense
    ";
    golden("failures.txt", &cloud.transcript(lines));
}
