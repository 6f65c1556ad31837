//! The containers of the Kubernetes manifests, as real processes.
//!
//! What kustomize makes of `deploy/kubernetes` is in `tests/golden/kubernetes`; `make kubernetes` renders and validates it.

use super::super::stand_in::StandIn;
use super::*;

const PAIRS: &str = "{\"prompt\": \"a\", \"chosen\": \"Yes.\", \"rejected\": \"No.\"}\n\
                     {\"prompt\": \"b\", \"chosen\": \"One.\", \"rejected\": \"Two.\"}\n\
                     {\"prompt\": \"c\", \"chosen\": \"Up.\", \"rejected\": \"Down.\"}\n";

/// All objects of a rendered overlay, which must not be older than its sources.
fn objects(name: &str) -> Vec<Value> {
    let text = shipped(&format!("tests/golden/kubernetes/{name}.yaml"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes");
    let mut sources = Vec::new();
    files(&root, &root, &mut sources);
    let mut sources: Vec<&str> = sources
        .iter()
        .map(|path| path.trim_start_matches('/'))
        .collect();
    sources.sort_unstable();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for path in sources.into_iter().filter(|path| path.ends_with(".yaml")) {
        let content = std::fs::read(root.join(path)).unwrap();
        let head = format!("{path}\n{}\n", content.len());
        for byte in head.bytes().chain(content) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    assert!(
        text.lines()
            .next()
            .unwrap()
            .ends_with(&format!("{hash:016x}")),
        "deploy/kubernetes was changed: `make kubernetes WRITE=1` renders it"
    );
    serde_saphyr::from_multiple(&text).unwrap()
}

fn named<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = all
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The text at a JSON pointer.
fn text(value: &Value, pointer: &str) -> String {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap()
        .into()
}

/// What a secret holds under a key.
fn secret(key: &str) -> &'static str {
    match key {
        "admin-key" => "operators",
        "AWS_ACCESS_KEY_ID" => "key",
        "AWS_SECRET_ACCESS_KEY" => "secret",
        other => panic!("no secret {other}"),
    }
}

/// The pod of a workload with its ConfigMaps and Secrets, in a cluster that announces its services.
fn pod(all: &[Value], kind: &str, name: &str) -> Deployment {
    let pod = &named(all, kind, name)["spec"]["template"]["spec"];
    assert_eq!(pod["enableServiceLinks"], false, "{name}");
    assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
    assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
    let mut found = image();
    found.arguments = serde_json::from_value(container["args"].clone()).unwrap();
    let empty = Vec::new();
    for source in container["envFrom"].as_array().unwrap_or(&empty) {
        if let Some(map) = source["configMapRef"]["name"].as_str() {
            for (name, value) in named(all, "ConfigMap", map)["data"].as_object().unwrap() {
                let value = value.as_str().unwrap().to_owned();
                found.environment.insert(name.clone(), value);
            }
        }
        if source["secretRef"]["name"] == "realign-store" {
            for key in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
                found.environment.insert(key.into(), secret(key).into());
            }
        }
    }
    for variable in container["env"].as_array().unwrap_or(&empty) {
        let from = &variable["valueFrom"];
        let value = match (&variable["value"], &from["fieldRef"]["fieldPath"]) {
            (Value::String(value), _) => value.clone(),
            (_, Value::String(path)) if path == "metadata.name" => "pod-0".into(),
            // The job's index, which the test sets.
            (_, Value::String(path)) if path.contains("job-completion-index") => "0".into(),
            _ => secret(&text(from, "/secretKeyRef/key")).into(),
        };
        found.environment.insert(text(variable, "/name"), value);
    }
    found.writable.clear();
    let volumes = pod["volumes"].as_array().unwrap();
    for mount in container["volumeMounts"].as_array().unwrap() {
        let at = text(mount, "/mountPath");
        if mount["readOnly"] != true {
            found.writable.push(at.clone());
        }
        let volume = volumes.iter().find(|v| v["name"] == mount["name"]).unwrap();
        if let Some(map) = volume["configMap"]["name"].as_str() {
            // The policies are the base's.
            let base = objects("base");
            let own = all.iter().any(|object| object["metadata"]["name"] == map);
            let holder = if own { all } else { &base };
            for (name, text) in named(holder, "ConfigMap", map)["data"].as_object().unwrap() {
                let text = text.as_str().unwrap().to_string();
                found.files.push((format!("{at}/{name}"), text));
            }
        }
        if volume["secret"].is_object() {
            let path = text(volume, "/secret/items/0/path");
            found
                .files
                .push((format!("{at}/{path}"), "web:key\n".into()));
        }
    }
    announce_services(all, &mut found.environment);
    found
}

/// The variables with which a cluster announces its services to every container. The manifest turns
/// them off; older clusters and copies of the manifest may not.
fn announce_services(all: &[Value], environment: &mut BTreeMap<String, String>) {
    let services = all.iter().filter(|object| object["kind"] == "Service");
    for service in services.filter(|service| service["spec"]["clusterIP"] != "None") {
        let name = service["metadata"]["name"].as_str().unwrap();
        let prefix = name.to_uppercase().replace('-', "_");
        let port = &service["spec"]["ports"][0];
        let number = port["port"].as_u64().unwrap();
        let port_name = port["name"].as_str().unwrap().to_uppercase();
        let url = format!("tcp://10.43.0.1:{number}");
        let variables = [
            ("SERVICE_HOST".to_string(), "10.43.0.1".to_string()),
            ("SERVICE_PORT".into(), number.to_string()),
            (format!("SERVICE_PORT_{port_name}"), number.to_string()),
            ("PORT".into(), url.clone()),
            (format!("PORT_{number}_TCP"), url),
            (format!("PORT_{number}_TCP_PROTO"), "tcp".into()),
            (format!("PORT_{number}_TCP_PORT"), number.to_string()),
            (format!("PORT_{number}_TCP_ADDR"), "10.43.0.1".into()),
        ];
        let named = variables.map(|(name, value)| (format!("{prefix}_{name}"), value));
        environment.extend(named);
    }
}

/// One server.
pub(super) fn of_base() -> Deployment {
    pod(&objects("base"), "Deployment", "realign")
}

/// The status and text that a probe of a container gets.
fn probed(running: &mut Running, container: &Value, probe: &str) -> (u16, String) {
    let probe = &container[probe]["httpGet"];
    let address = match probe["port"].as_str() {
        Some("http") => running.address("listening: http://"),
        Some("admin") => running.address("operators: http://"),
        _ => panic!("{probe}"),
    };
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build();
    let url = format!("{address}{}", text(probe, "/path"));
    let mut answer = ureq::Agent::from(agent).get(url).call().unwrap();
    let said = answer.body_mut().read_to_string().unwrap();
    (answer.status().as_u16(), said)
}

/// Starts a container and asks its probes; returns what the readiness probe said in the end.
fn starts(all: &[Value], name: &str, deployment: &Deployment, ready: u16) -> String {
    let container = &named(all, "Deployment", name)["spec"]["template"]["spec"]["containers"][0];
    let root = tempfile::tempdir().unwrap();
    let mut running = Running::start(deployment, root.path());
    for probe in ["startupProbe", "livenessProbe"] {
        assert_eq!(
            probed(&mut running, container, probe).0,
            200,
            "{name}: {probe}"
        );
    }
    let said = wait("the readiness probe", || {
        let (status, said) = probed(&mut running, container, "readinessProbe");
        (status == ready).then_some(said)
    });
    drop(running);
    check_written(name, deployment, root.path());
    said
}

/// Selectors find the pods they are for, and no others.
fn check_selectors(all: &[Value]) {
    let pods: Vec<(String, &Value)> = all
        .iter()
        .filter(|object| object["kind"] == "Deployment")
        .map(|object| {
            (
                text(object, "/metadata/name"),
                &object["spec"]["template"]["metadata"]["labels"],
            )
        })
        .collect();
    let selected = |selector: &Value| -> Vec<&str> {
        let selector = selector.as_object().unwrap();
        let has = |labels: &Value| selector.iter().all(|(name, value)| labels[name] == *value);
        let found = pods.iter().filter(|(_, labels)| has(labels));
        found.map(|(name, _)| name.as_str()).collect()
    };
    for object in all {
        let name = text(object, "/metadata/name");
        let spec = &object["spec"];
        match object["kind"].as_str().unwrap() {
            "Deployment" => {
                assert_eq!(selected(&spec["selector"]["matchLabels"]), [&*name]);
            }
            "Service" => assert_eq!(selected(&spec["selector"]).len(), 1, "{name}"),
            "PodDisruptionBudget" => {
                assert_eq!(selected(&spec["selector"]["matchLabels"]), [&*name]);
            }
            "NetworkPolicy" => assert!(!selected(&spec["podSelector"]["matchLabels"]).is_empty()),
            _ => {}
        }
    }
}

#[test]
fn a_fleet_with_a_store_starts_as_its_manifests_say() {
    if engine::lacks("the files in deploy/ use the native engine") {
        return;
    }
    let all = objects("fleet");
    check_selectors(&all);
    let mut controller = pod(&all, "Deployment", "realign");
    let mut follower = pod(&all, "Deployment", "realign-follower");
    assert_eq!(controller.arguments[0], "control");
    assert_eq!(follower.environment["REALIGN_STORE__NAME"], "pod-0");
    for (name, deployment) in [
        ("realign", &mut controller),
        ("realign-follower", &mut follower),
    ] {
        // Nothing listens there: they live, and say what they wait for.
        let store = "http://seaweedfs.default.svc:8333";
        deployment.hosts = vec![(store, "http://127.0.0.1:9".into())];
        let said = starts(&all, name, deployment, 503);
        assert!(said.contains("s3://models/assistant"), "{name}: {said}");
    }
}

#[test]
fn a_gateway_before_vllm_starts_as_its_manifests_say() {
    if engine::lacks("the files in deploy/ use the native engine") {
        return;
    }
    let all = objects("vllm");
    check_selectors(&all);
    let engine = &named(&all, "Deployment", "vllm")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(engine["env"][0]["name"], "VLLM_ALLOW_RUNTIME_LORA_UPDATING");
    let service = &named(&all, "Service", "vllm")["spec"];
    assert_eq!(
        (&service["clusterIP"], &service["ports"][0]["port"]),
        (&"None".into(), &8000.into())
    );
    let stand_in = StandIn::start();
    let engines = vec![("http://vllm:8000", stand_in.url())];
    let mut controller = pod(&all, "Deployment", "realign");
    controller.hosts = engines.clone();
    starts(&all, "realign", &controller, 200);
    let mut gateway = pod(&all, "Deployment", "realign-gateway");
    gateway.hosts = engines;
    gateway.own = ["--port", "0", "--admin-port", "0"]
        .map(String::from)
        .to_vec();
    let said = starts(&all, "realign-gateway", &gateway, 200);
    assert!(said.contains("\"generation\":\"base\""), "{said}");
}

#[test]
fn a_triage_by_an_indexed_job_is_merged() {
    if engine::lacks("the files in deploy/ use the native engine") {
        return;
    }
    let all = objects("triage");
    let job = &named(&all, "Job", "realign-triage")["spec"];
    assert_eq!(job["completionMode"], "Indexed");
    let shards = job["completions"].as_u64().unwrap();
    let shipped = pod(&all, "Job", "realign-triage");
    let root = tempfile::tempdir().unwrap();
    let shared = root.path().join("shared");
    std::fs::create_dir_all(shared.join("preferences")).unwrap();
    std::fs::write(shared.join("preferences/pairs.jsonl"), PAIRS).unwrap();
    for index in 0..shards {
        let mut deployment = shipped.clone();
        deployment.own.clear();
        let index = index.to_string();
        for argument in &mut deployment.arguments {
            *argument = argument.replace("$(JOB_COMPLETION_INDEX)", &index);
        }
        deployment
            .environment
            .insert("JOB_COMPLETION_INDEX".into(), index);
        let mut running = Running::start(&deployment, root.path());
        let status = running.child.wait().unwrap();
        let log = std::fs::read_to_string(&running.log).unwrap();
        assert!(status.success(), "{status}: {log}");
    }
    check_written("triage", &shipped, root.path());
    // As the manifest says: by the controller, with its policies.
    let policies = root.path().join("etc/realign/policies");
    let merged = Command::new(env!("CARGO_BIN_EXE_realign"))
        .args(["triage", "--json", "--merge"])
        .arg(shared.join("verdicts"))
        .arg("--policies")
        .arg(policies)
        .arg("--preferences")
        .arg(shared.join("preferences"))
        .current_dir(root.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&merged.stderr);
    assert!(merged.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&merged.stdout).unwrap();
    assert_eq!(
        (&report["shards"], &report["pairs"]),
        (&shards.into(), &3.into())
    );
    assert_eq!(report["used"]["judged"], 0);
}
