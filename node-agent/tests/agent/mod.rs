//! A node agent in directories of its own, asked over its socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use basalt_tests::ovs::Switch;
use basalt_tests::process::wait_for;
use basalt_tests::systemd;
use serde_json::{Value, json};
use sha2::Digest;

/// Where an agent in a namespace sees cgroup v2.
const NAMESPACE_GROUPS: &str = "/sys/fs/cgroup";
/// How long the agent may take to answer its socket.
const START: Duration = Duration::from_secs(30);

/// An agent, running or not.
pub(crate) struct Agent {
    directory: tempfile::TempDir,
    namespace: Option<String>,
    /// The cgroup of its machines, where there is cgroup v2.
    group: Option<PathBuf>,
    /// Words for the shell that becomes the agent, in a mount namespace of its own.
    prelude: String,
    child: Option<Child>,
}

/// Tells the agents of one test program apart.
static COUNT: AtomicU32 = AtomicU32::new(0);

impl Agent {
    /// An agent that takes specs by its API; with a switch, it works in the switch's network namespace.
    pub(crate) fn new(switch: Option<&Switch>) -> Self {
        let directory = tempfile::Builder::new().prefix("ba-").tempdir().unwrap();
        let namespace = switch.map(|switch| switch.namespace().name().to_owned());
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("basalt-agent-{}-{number}", std::process::id());
        let group = systemd::cgroup_root().ok().map(|root| root.join(name));
        let agent = Self { directory, namespace, group, prelude: String::new(), child: None };
        let run_dir = switch.map_or_else(|| agent.path("no-switch"), |switch| switch.dir().to_owned());
        agent.configure(&format!(
            "[spec]\nsource = \"api\"\n[switch]\ndatapath = \"netdev\"\nrun_dir = {run_dir:?}\ndatabase = {:?}\n",
            run_dir.join("db.sock")
        ));
        agent
    }

    /// An agent that works on a switch from outside of its namespace, where it reaches what this machine reaches and can have no ports.
    pub(crate) fn beside(switch: &Switch) -> Self {
        let mut agent = Self::new(Some(switch));
        agent.namespace = None;
        let path = agent.path("agent.toml");
        let inside = std::fs::read_to_string(&path).unwrap();
        let outside = inside.replace(NAMESPACE_GROUPS, systemd::cgroup_root().unwrap().to_str().unwrap());
        std::fs::write(path, outside).unwrap();
        agent
    }

    /// A path below the agent's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the configuration: this, and the directories.
    pub(crate) fn configure(&self, text: &str) {
        let [state, run, cache, socket] = ["state", "run", "cache", "agent.sock"].map(|name| self.path(name));
        let text = format!(
            "{text}\n[paths]\nstate = {state:?}\nrun = {run:?}\ncache = {cache:?}\n[api]\nsocket = {socket:?}\n\
             [images]\ndirectory = {:?}\n\
             [machines]\nvmm = {:?}\nsystemd = \"never\"\nshutdown_grace_seconds = 2\ncgroup = {:?}\n",
            self.path("images"),
            // Built only for tests that launch one.
            std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("vmm"),
            Path::new(NAMESPACE_GROUPS)
                .join(self.group.as_ref().and_then(|group| group.file_name()).unwrap_or_default()),
        );
        std::fs::write(self.path("agent.toml"), text).unwrap();
    }

    fn command(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_node-agent");
        let mut command = match &self.namespace {
            None => Command::new(program),
            Some(name) => {
                // ip-netns(8) mounts a /sys of the namespace, which has the taps and lacks the cgroups.
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name, "sh", "-ec"]);
                command
                    .arg(format!("mount -t cgroup2 cgroup2 {NAMESPACE_GROUPS}; {} exec \"$0\" \"$@\"", self.prelude))
                    .arg(program);
                command
            }
        };
        command.arg("--config").arg(self.path("agent.toml")).arg("run").stdin(Stdio::null());
        command
    }

    /// Starts the agent and waits until it answers.
    pub(crate) fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("agent.log")).unwrap();
        // `ip netns exec` becomes the shell and the shell the agent: the child's number is the agent's.
        self.child = Some(self.command().stderr(log).spawn().unwrap());
        let deadline = Instant::now() + START;
        while self.get("/v1/status").is_err() {
            assert!(Instant::now() < deadline, "the agent does not answer:\n{}", self.log());
            pause();
        }
    }

    /// Starts an agent that cannot begin and returns what it says.
    pub(crate) fn start_failing(&mut self) -> String {
        let output = self.command().output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// What the agent logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// The cgroup of its machines.
    pub(crate) fn group(&self) -> Option<&Path> {
        self.group.as_deref()
    }

    /// The processes in the cgroup of one machine.
    pub(crate) fn processes(&self, number: u32) -> Vec<i32> {
        let path = self.group.as_ref().unwrap().join(format!("vm-{}/cgroup.procs", uuid(1, number)));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// What a machine's guest wrote to its console, over all its processes.
    pub(crate) fn console(&self, number: u32) -> String {
        std::fs::read_to_string(self.path(&format!("run/vm/{}/console.log", uuid(1, number)))).unwrap_or_default()
    }

    /// Has the shell that becomes the agent do something first, in the agent's own mount namespace. Only for an agent in a switch's namespace.
    pub(crate) fn begin_with(&mut self, words: &str) {
        self.prelude = format!("{words};");
    }

    /// Adds sections to the configuration.
    pub(crate) fn add_config(&self, text: &str) {
        let path = self.path("agent.toml");
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, format!("{before}\n{text}")).unwrap();
    }

    /// Names of the files in a directory of the agent.
    pub(crate) fn files(&self, name: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(name)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Waits until the status is as it should be.
    pub(crate) fn wait(&self, what: &str, limit: Duration, holds: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.get("/v1/status").unwrap_or_else(|error| json!({ "failing": [], "error": error }));
            if holds(&status) {
                return;
            }
            assert!(Instant::now() < deadline, "waited {limit:?} for {what}: {status:#}\n{}", self.log());
            pause();
        }
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value, String> {
        self.text_of("GET", path, "").and_then(|text| serde_json::from_str(&text).map_err(|e| e.to_string()))
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Result<Value, String> {
        self.text_of("POST", path, body).and_then(|text| serde_json::from_str(&text).map_err(|e| e.to_string()))
    }

    pub(crate) fn put(&self, body: &str) -> Result<String, String> {
        self.text_of("PUT", "/v1/spec", body)
    }

    pub(crate) fn text(&self, path: &str) -> Result<String, String> {
        self.text_of("GET", path, "")
    }

    fn text_of(&self, method: &str, path: &str, body: &str) -> Result<String, String> {
        ask(&self.path("agent.sock"), method, path, body)
    }
}

/// Asks an agent's socket; what it refuses comes back whole.
pub(crate) fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Result<String, String> {
    let exchange = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let length = body.len();
        // HTTP/1.0: the answer ends with the connection and is not chunked.
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nhost: agent\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let answer = exchange().map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.contains(" 200 ") { Ok(body.to_owned()) } else { Err(answer) }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        // Machines outlive the agent: this is the test's end, and theirs.
        let Some(group) = &self.group else { return };
        if std::fs::write(group.join("cgroup.kill"), "1").is_ok() {
            let _gone = wait_for("the end of machines", START, || Ok(systemd::remove_group(group).ok()));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a bounded poll of another process")]
fn pause() {
    std::thread::sleep(Duration::from_millis(100));
}

/// A spec of stopped machines `vm1`, `vm2`, …, each with a volume and a port in 10.9.0.0/24. Those beyond `machines` have retired volumes.
pub(crate) fn spec(generation: u64, machines: u32, remote: bool) -> String {
    spec_value(generation, machines, remote).to_string()
}

/// The id of an object: 1 machines, 2 ports, 3 volumes, 4 images.
pub(crate) fn uuid(kind: u32, number: u32) -> String {
    format!("{kind:08x}-0000-4000-8000-{number:012x}")
}

/// As [`spec`], to be changed.
pub(crate) fn spec_value(generation: u64, machines: u32, remote: bool) -> Value {
    let host = uuid(9, 1);
    let backend = if remote { json!({ "rbd": { "pool": "volumes" } }) } else { json!("local") };
    let volume =
        |n: u32| json!({ "id": uuid(3, n), "name": format!("v{n}"), "size": 8, "backend": backend, "source": "empty" });
    let port = |n: u32| {
        json!({
            "id": uuid(2, n), "name": format!("p{n}"), "network": uuid(5, 1), "key": n,
            "mac": format!("fa:16:3e:00:00:{n:02x}"),
            "addresses": [{ "subnet": uuid(6, 1), "address": format!("10.9.0.{}", n + 10) }],
            "groups": [], "port_security": true,
            "binding": { "machine": uuid(1, n), "hostname": format!("vm{n}"), "host": host, "tunnel": "192.0.2.1" },
        })
    };
    let machine = |n: u32| {
        json!({
            "id": uuid(1, n), "name": format!("vm{n}"), "vcpus": 1, "memory": 64,
            "boot": { "kernel": uuid(4, 1), "initrd": null, "cmdline": "" },
            "disks": [{ "volume": uuid(3, n), "read_only": false }], "ports": [uuid(2, n)],
            "power": "stopped", "starts": 1,
        })
    };
    let here = || 1..=machines;
    json!({
        "version": "1", "generation": generation, "host": host, "tunnel": "192.0.2.1",
        "networks": [{ "id": uuid(5, 1), "name": "net", "vni": 7, "mtu": 1450 }],
        "subnets": [{
            "id": uuid(6, 1), "name": "subnet", "network": uuid(5, 1), "cidr": "10.9.0.0/24", "gateway": null, "dhcp": true, "dns": []
        }],
        "routers": [], "groups": [],
        "ports": here().map(port).collect::<Vec<_>>(),
        "images": [{ "id": uuid(4, 1), "name": "kernel", "kind": "kernel", "sha256": "11".repeat(32), "size_bytes": 1 }],
        "volumes": here().map(volume).collect::<Vec<_>>(),
        "retired_volumes": (machines + 1..=2).map(volume).collect::<Vec<_>>(),
        "machines": here().map(machine).collect::<Vec<_>>(),
    })
}

/// The same machines, all running the native guest with these words; its program is put into `images` for the agent to take.
pub(crate) fn running(mut spec: Value, words: &str, images: &Path) -> Value {
    let program = std::fs::read(native_guest::elf()).unwrap();
    std::fs::create_dir_all(images).unwrap();
    std::fs::write(images.join(uuid(4, 1)), &program).unwrap();
    let digest: String = sha2::Sha256::digest(&program).iter().map(|byte| format!("{byte:02x}")).collect();
    spec["images"][0]["sha256"] = json!(digest);
    spec["images"][0]["size_bytes"] = json!(program.len());
    for machine in spec["machines"].as_array_mut().unwrap() {
        machine["power"] = json!("running");
        machine["boot"]["cmdline"] = json!(words);
    }
    spec
}

/// Two machines without port security, the second on a host at 192.0.2.2.
pub(crate) fn spec_with_a_peer() -> String {
    let mut spec = spec_value(1, 2, false);
    for list in ["machines", "volumes"] {
        spec[list].as_array_mut().unwrap().pop();
    }
    for port in spec["ports"].as_array_mut().unwrap() {
        port["port_security"] = false.into();
    }
    spec["ports"][1]["binding"]["host"] = uuid(9, 2).into();
    spec["ports"][1]["binding"]["tunnel"] = "192.0.2.2".into();
    spec.to_string()
}
