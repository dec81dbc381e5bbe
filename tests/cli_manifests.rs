//! Manifests that are broken, and manifests that were made for something else.

mod common;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use common::manifests::Manifests;
use common::mesh::Mesh;
use common::{EU, SOON, ask, run, tombolo};
use tombolo_testbed::dns::Question;
use tombolo_testbed::{Demo, Layout, Process, Scratch, wait_for};

const CATALOG: &str = "europe-west4/alpha/catalog.yaml";

/// Waits for the one problem of an agent that holds all of `words`.
fn told(admin: SocketAddr, words: &[&str]) -> anyhow::Result<String> {
    wait_for(format!("a problem with {words:?}"), SOON, || {
        let problems = ask::problems(admin)?;
        let all = |problem: &&String| words.iter().all(|word| problem.contains(word));
        problems.iter().find(all).cloned().ok_or_else(|| anyhow::anyhow!("{problems:?}"))
    })
}

#[test]
fn a_broken_field_is_named_its_object_stays_and_the_rest_of_the_edit_goes_on() -> anyhow::Result<()>
{
    let mesh = Mesh::start("broken-field")?;
    let before = mesh.manifests.read(CATALOG)?;
    let (first, added) = (mesh.manifests.eu(1, 31), mesh.manifests.eu(1, 34));
    let pods = ask::addresses(mesh.us().dns, "catalog")?;

    // In one save: the Service's port is broken, and the slice has another address.
    let broken = before.replacen("port: 8080", "port: eight", 1).replace(&first, &added);
    mesh.manifests.write(CATALOG, &broken)?;
    let problem = told(
        mesh.eu().admin,
        &["catalog.yaml, document 1", "Service shop/catalog", "spec.ports[0].port", "eight"],
    )?;
    assert!(problem.contains("the last good state stays in use"), "{problem}");
    let mut expected: Vec<String> = pods.iter().filter(|pod| **pod != first).cloned().collect();
    expected.push(added.clone());
    expected.sort();
    wait_for("the good part of the edit is in the other region", SOON, || {
        ask::same(&ask::addresses(mesh.us().dns, "catalog")?, &expected)
    })?;
    let srv = "_http._tcp.catalog.shop.svc.clusterset.local";
    let ports = Question::udp(mesh.us().dns, srv, "SRV").dig(&[])?;
    assert!(ports.data("SRV").iter().all(|srv| srv.contains(" 8080 ")), "{ports:?}");
    // The CLI shows it as well.
    let status = run(&["status", "--admin", &mesh.eu().admin.to_string()])?;
    assert!(status.stdout.contains(&format!("problem: {problem}")), "{status:?}");

    mesh.manifests.write(CATALOG, &before)?;
    wait_for("the mended file", SOON, || {
        ask::same(&ask::problems(mesh.eu().admin)?, &Vec::new())?;
        ask::same(&ask::addresses(mesh.us().dns, "catalog")?, &pods)
    })?;
    mesh.end()
}

#[test]
fn broken_addresses_syntax_and_whole_files_take_nothing_with_them() -> anyhow::Result<()> {
    let mesh = Mesh::start("broken-more")?;
    let before = mesh.manifests.read(CATALOG)?;
    let (digest, first) = (mesh.agreed_digest()?, mesh.manifests.eu(1, 31));
    let cases: [(String, &[&str]); 5] = [
        (
            before.replace(&format!("[{first}]"), "[not-an-address]"),
            &["document 2", "EndpointSlice shop/catalog-1", "endpoints[0].addresses[0]"],
        ),
        (
            before.replace("kind: EndpointSlice", "kind: EndpointSlice\n  bad: [indent"),
            &["document 2"],
        ),
        (before.replace("name: catalog\n", "name: UPPER_case\n"), &["UPPER_case", "metadata.name"]),
        ("\u{0}\u{1}\u{fffd}{{{{ [".to_owned(), &["catalog.yaml"]),
        (before.replace("ready: true", "ready: maybe"), &["conditions.ready", "maybe"]),
    ];
    for (broken, words) in cases {
        assert_ne!(broken, before, "{words:?}");
        mesh.manifests.write(CATALOG, &broken)?;
        told(mesh.eu().admin, &[&["catalog.yaml"], words].concat())?;
        assert_eq!(ask::addresses(mesh.us().dns, "catalog")?.len(), 4, "{words:?}");
        assert_eq!(mesh.agreed_digest()?, digest, "{words:?}");
        mesh.manifests.write(CATALOG, &before)?;
        wait_for("mended", SOON, || ask::same(&ask::problems(mesh.eu().admin)?, &Vec::new()))?;
    }
    // Bytes that are no text, and nothing at all where the clusters were.
    std::fs::write(mesh.manifests.path(CATALOG), [0xff, 0xfe, 0x00, 0x80])?;
    told(mesh.eu().admin, &["catalog.yaml"])?;
    assert_eq!(mesh.agreed_digest()?, digest);
    mesh.manifests.write(CATALOG, &before)?;
    let moved = mesh.manifests.path("europe-west4/moved");
    std::fs::rename(mesh.manifests.path("europe-west4/alpha"), &moved)?;
    told(mesh.eu().admin, &["the directory"])?;
    assert_eq!(mesh.agreed_digest()?, digest);
    std::fs::rename(moved, mesh.manifests.path("europe-west4/alpha"))?;
    wait_for("mended", SOON, || ask::same(&ask::problems(mesh.eu().admin)?, &Vec::new()))?;
    assert_eq!(mesh.agreed_digest()?, digest);
    mesh.end()
}

#[test]
fn an_address_that_no_cluster_may_use_is_refused_alone() -> anyhow::Result<()> {
    let mesh = Mesh::start("broken-address")?;
    let first = mesh.manifests.eu(1, 31);
    for refused in ["169.254.169.254", "0.0.0.0"] {
        let before = mesh.manifests.read(CATALOG)?;
        mesh.manifests.edit(CATALOG, &format!("[{first}]"), &format!("[{refused}]"))?;
        told(mesh.eu().admin, &["catalog.yaml", refused])?;
        wait_for("the others are there, it is not", SOON, || {
            let pods = ask::addresses(mesh.us().dns, "catalog")?;
            anyhow::ensure!(pods.len() == 3 && !pods.contains(&refused.to_owned()), "{pods:?}");
            Ok(())
        })?;
        mesh.manifests.write(CATALOG, &before)?;
        wait_for("mended", SOON, || ask::same(&ask::problems(mesh.eu().admin)?, &Vec::new()))?;
    }
    mesh.end()
}

#[test]
fn the_examples_are_what_it_shows_unasked_and_they_declare_loopback_alone() -> anyhow::Result<()> {
    let scratch = Scratch::new("examples")?;
    let manifests = Manifests::copy(scratch.path())?;
    std::fs::create_dir(scratch.path().join("examples"))?;
    std::os::unix::fs::symlink(manifests.root(), scratch.path().join("examples/demo"))?;
    let (state, first) = (scratch.path().join("state"), manifests.eu(1, 31));
    manifests.edit(CATALOG, &format!("[{first}]"), "[192.0.2.7]")?;

    let mut command = Command::new(tombolo());
    command.args(["demo", "--ports", "auto", "--state-dir"]).arg(&state);
    command.current_dir(scratch.path()).env("PATH", "");
    let mut process = Process::start("demo", &mut command, scratch.path())?;
    let layout: Layout = wait_for("it is ready", Duration::from_secs(30), || {
        let text = std::fs::read_to_string(state.join("demo.json"))?;
        anyhow::Ok(serde_json::from_str(&text)?)
    })?;
    let agent = &layout.regions[0].clusters[0];
    assert_eq!((layout.regions.len(), agent.id.as_str()), (2, "europe-west4-alpha"));
    told(agent.admin, &["catalog.yaml", "192.0.2.7"])?;
    assert_eq!(ask::addresses(agent.dns, "catalog")?.len(), 3);
    assert!(process.terminate(SOON)?.success());
    assert!(!process.stderr()?.contains("panicked"));
    Ok(())
}

/// A small set as projects publish them: no `ServiceExports`, much else.
fn published(dir: &std::path::Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir.join("crds"))?;
    let write = |file: &str, text: &str| std::fs::write(dir.join(file), text);
    write(
        "crds/widgets.yaml",
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: widgets.example.com}\n",
    )?;
    write(
        "all.yaml",
        "# A comment before everything.
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: site}
spec: {replicas: 3}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: site, labels: {app.kubernetes.io/part-of: site}}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http-alt}
  - {name: https, port: 443, targetPort: 8443}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: site}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web, namespace: site}
data:
  inner.yaml: |
    kind: Service
    ---
    not: a document of this file
---
",
    )?;
    write(
        "list.yaml",
        "apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: api}
  spec: {ports: [{port: 8080}]}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: api-1, labels: {kubernetes.io/service-name: api}}
  addressType: IPv4
  ports: [{port: 8080}]
  endpoints: [{addresses: [10.1.2.3], conditions: {ready: true}}]
- apiVersion: v1
  kind: Secret
  metadata: {name: s}
",
    )?;
    write(
        "db.json",
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": "data"},
            "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}}"#,
    )?;
    write(
        "chart.yaml",
        "{{- if .Values.on }}\nkind: Service\nmetadata: {name: {{ .Release.Name }}}\n{{- end }}\n",
    )?;
    write("ci.yml", "on: push\njobs:\n  test: {runs-on: any}\n")?;
    write("README.md", "kind: Service\n")?;
    Ok(())
}

#[test]
fn manifests_as_projects_publish_them_are_read_counted_and_exported_on_demand() -> anyhow::Result<()>
{
    let scratch = Scratch::new("published")?;
    let dir = scratch.path().join("k8s");
    published(&dir)?;
    let dirs = [format!("eu/site={}", dir.display()), format!("us/site={}", dir.display())];
    let arguments = ["--export-all", "--dir", &dirs[0], "--dir", &dirs[1]];
    let demo = Demo::start(tombolo(), scratch.path(), None, &arguments)?;
    let agent = demo.cluster("us", "site")?;
    let status = ask::status(agent.admin)?;
    let source = &status["source"];
    assert_eq!(source["read"], serde_json::json!({"EndpointSlice": 1, "Service": 3}), "{status}");
    for kind in ["Deployment", "Ingress", "ConfigMap", "CustomResourceDefinition", "Secret"] {
        let counted = source["other_kinds"].as_object().into_iter().flatten();
        let of_kind: Vec<_> =
            counted.filter(|(name, _)| name.split('.').next() == Some(kind)).collect();
        assert!(of_kind.len() == 1 && of_kind[0].1 == 1, "{kind}: {source}");
    }
    assert_eq!((&source["templates"], &source["not_kubernetes"]), (&1.into(), &1.into()));
    assert_eq!(ask::problems(agent.admin)?, Vec::<String>::new());

    // Without a namespace it is in `default`; both clusters have it.
    let name = "api.default.svc.clusterset.local";
    let answer = Question::udp(agent.dns, name, "A").dig(&[])?;
    assert_eq!(answer.data("A"), ["10.1.2.3"]);
    // Services without endpoints exist, and say exactly that.
    let web = Question::udp(agent.dns, "web.site.svc.clusterset.local", "A").dig(&[])?;
    assert!(web.is_nodata(), "{web:?}");
    // Without a pod a headless one has no name either.
    let db = Question::udp(agent.dns, "db.data.svc.clusterset.local", "A").dig(&[])?;
    assert_eq!(db.status, "NXDOMAIN");
    let admin = agent.admin.to_string();
    let table = run(&["services", "--admin", &admin])?.stdout;
    let web = table.lines().find(|line| line.starts_with("site/web")).unwrap_or_default();
    assert!(web.contains("http 80/TCP, https 443/TCP") && web.contains("0/0"), "{table}");
    let told = run(&["dns", "web.site", "--admin", &admin])?;
    assert!(told.code == 1 && told.stdout.contains("no endpoints"), "{told:?}");
    demo.interrupt()
}

#[test]
fn without_export_all_such_a_set_exports_nothing() -> anyhow::Result<()> {
    let scratch = Scratch::new("published-none")?;
    let dir = scratch.path().join("k8s");
    published(&dir)?;
    let dirs = format!("{EU}/site={}", dir.display());
    let demo = Demo::start(tombolo(), scratch.path(), None, &["--dir", &dirs])?;
    let admin = demo.cluster(EU, "site")?.admin;
    assert_eq!(ask::services(admin)?, serde_json::json!([]));
    demo.interrupt()
}
