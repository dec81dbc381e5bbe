use super::*;

const AGENT: &str = "
mesh: demo.example
region: us-west1
cluster: alpha
stateDir: /var/lib/tombolo
identity: /etc/tombolo
listen: {grpc: '127.0.0.1:1', dns: '127.0.0.1:2', admin: '127.0.0.1:3'}
controlPlane: 127.0.0.1:7443
source: {directory: /manifests}
";

#[test]
fn an_agent_needs_no_more_than_this() {
    let config: AgentConfig = parse(AGENT).unwrap();
    assert_eq!(config.cluster_id().unwrap().as_str(), "us-west1-alpha");
    assert!(!config.source.export_all && config.network.is_empty());
    assert_eq!(guard::Settings::from(config.guard), guard::Settings::default());
}

#[test]
fn what_is_wrong_is_named() {
    let check = |from: &str, to: &str, why: &str| {
        let text = AGENT.replace(from, to);
        assert_ne!(text, AGENT, "{from}");
        let error = parse::<AgentConfig>(&text).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    check("mesh:", "mash:", "unknown field `mash`");
    check("{directory:", "{exportall: true, directory:", "source");
    check("127.0.0.1:2", "127.0.0.1", "listen.dns");
    check("us-west1", "US", "region: \"US\" is not a region name");
    check("cluster: alpha", "", "missing field `cluster`");
    let guard = "cluster: alpha\nguard: {percent: 101}";
    check("cluster: alpha", guard, "guard.percent: 101 is no share: expected 0 to 100");
    let guard = "cluster: alpha\nguard: {windowSeconds: -1}";
    check("cluster: alpha", guard, "guard.windowSeconds");
    check("controlPlane: 127.0.0.1:7443", "controlPlane: nowhere", "\"nowhere\" is not HOST:PORT");
    check("127.0.0.1:7443", "host:0", "controlPlane: \"host:0\" is not HOST:PORT");
}

#[test]
fn a_region_has_each_other_region_for_a_peer_once() {
    let check = |peers: &str, why: &str| {
        let error = control_plane(&format!("peers: {peers}")).unwrap().check().unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    };
    check("[{region: us-west1, address: 'h:1'}]", "peers[0]: us-west1 is this region itself");
    check("[{region: eu, address: 'h:1'}, {region: eu, address: 'h:2'}]", "peers[1]: eu is a peer");
}

/// A control plane of us-west1 with this besides.
fn control_plane(line: &str) -> Result<ControlPlaneConfig, String> {
    let text = AGENT.replace("cluster: alpha", line);
    let of_agents = |line: &&str| line.starts_with("controlPlane") || line.starts_with("source");
    parse(&text.lines().filter(|line| !of_agents(line)).collect::<Vec<_>>().join("\n"))
}

#[test]
fn settings_of_the_region_are_read_and_the_defaults_are_the_documented_ones() {
    let plain = control_plane("").unwrap();
    assert_eq!(plain.leader_ttl, Span(Duration::from_secs(3)));
    assert_eq!(plain.operator_socket(), Path::new("/var/lib/tombolo/operator.sock"));
    assert!(plain.store.is_none());
    plain.check().unwrap();

    let lines = "entitlements: {us-west1-a: [shop, pay], us-west1-b: ['*']}
leaderTtl: 1m 30s
standIns: [eu]
rolloutOrder: [eu, us-west1]
peers: [{region: eu, address: ['h:1', 'h:2']}]
operatorSocket: /run/o.sock
store: {etcd: {endpoints: ['https://e:2379'], ca: a, cert: b, key: c, user: u, passwordFile: p}}";
    let config = control_plane(lines).unwrap();
    config.check().unwrap();
    assert_eq!(config.leader_ttl.0, Duration::from_secs(90));
    assert_eq!(config.peers[0].address.as_slice().len(), 2);
    assert_eq!(config.operator_socket(), Path::new("/run/o.sock"));
    let again = serde_json::to_string(&config).unwrap();
    let again: ControlPlaneConfig = parse(&again).unwrap();
    assert_eq!(again.entitlements, config.entitlements);
    assert_eq!(again.leader_ttl, config.leader_ttl);
}

#[test]
fn what_is_wrong_with_a_regions_settings_is_named() {
    let check = |line: &str, why: &str| {
        let error = match control_plane(line) {
            Ok(config) => config.check().expect_err(line).to_string(),
            Err(error) => error,
        };
        assert!(error.contains(why), "{line}: {error}");
    };
    check("limits: {fullTransfers: 4611686018427387904}", "limits.fullTransfers: more than ");
    check("leaderTtl: 500ms", "leaderTtl: 500ms is not from 1s to 1h");
    check("leaderTtl: soon", "leaderTtl: \"soon\" is not a length of time");
    check("leaderTtl: -3s", "leaderTtl");
    check("standIns: [eu, us-west1]", "standIns[1]: us-west1 is this region itself");
    check("standIns: [eu, eu]", "standIns[1]: eu stands twice");
    check("rolloutOrder: [eu, us-west1, eu]", "rolloutOrder[2]: eu stands twice");
    check("distances: {us-west1: 1}", "distances.us-west1: this region itself");
    check("entitlements: {eu-a: [shop]}", "entitlements.eu-a: not a cluster of this region");
    check("entitlements: {us-west1-a: [shop, '*']}", "stands alone");
    check("entitlements: {us-west1-a: [Shop]}", "namespace");
    check("peers: [{region: eu, address: []}]", "peers[0].address: no address");
    check("peers: [{region: eu, address: ['h:1', 'h:1']}]", "h:1 stands twice");
    check("peers: [{region: eu, address: [nowhere]}]", "\"nowhere\" is not HOST:PORT");
    let etcd = |rest: &str, why: &str| check(&format!("store: {{etcd: {{{rest}}}}}"), why);
    etcd("endpoints: []", "store.etcd.endpoints: no endpoint");
    let form = "store.etcd.endpoints[0]: \"h:1\" is not https://HOST:PORT";
    etcd("endpoints: ['h:1']", form);
    etcd("endpoints: ['https://h']", "\"https://h\" is not https://HOST:PORT");
    etcd("endpoints: ['https://h:0']", "is not https://HOST:PORT");
    etcd("endpoints: ['https://h:1/v3']", "is not https://HOST:PORT");
    etcd("endpoints: ['https://h:1', 'https://h:1/']", "endpoints[1]: https://h:1 stands twice");
    let slow = "endpoints: ['http://a:1', 'http://b:1'], requestTimeout: 6s";
    etcd(
        slow,
        "store.etcd.requestTimeout: 6s over 2 endpoints is 3s for each, not less than leaderTtl 3s",
    );
    etcd("endpoints: ['https://a:1', 'http://b:1']", "some are https and some are http");
    etcd("endpoints: ['http://a:1'], ca: x", "store.etcd.ca: the endpoints are http");
    etcd("endpoints: ['https://a:1'], cert: x", "https needs ca, cert and key");
    etcd("endpoints: ['http://a:1'], user: x", "user and passwordFile go together");
    etcd("endpoints: ['http://a:1'], requestTimeout: 1ms", "store.etcd.requestTimeout");
    etcd("endpoints: ['http://a:1'], quota: 0", "store.etcd.quota");
    etcd("endpoint: x", "unknown field `endpoint`");
}

#[test]
fn an_agents_region_may_have_several_addresses() {
    let text = AGENT.replace("127.0.0.1:7443", "['127.0.0.1:7443', 'h:2']");
    let config: AgentConfig = parse(&text).unwrap();
    assert_eq!(config.control_plane.as_slice().len(), 2);
    assert!(config.uses.is_empty());
}

#[test]
fn what_peers_and_agents_dial_is_an_address() {
    let check = |grpc: &str, rest: &str| {
        let mut config = control_plane(rest).unwrap();
        config.listen.grpc = grpc.parse().unwrap();
        config.check()
    };
    for nowhere in ["0.0.0.0:7443", "[::]:7443", "10.0.0.1:0"] {
        let error = check(nowhere, "").unwrap_err().to_string();
        assert!(error.starts_with("addresses: name what peers and agents dial"), "{error}");
        check(nowhere, "addresses: ['us.example:7443']").unwrap();
    }
    check("10.0.0.1:7443", "").unwrap();
}

#[test]
fn a_password_in_an_endpoint_is_refused_and_not_repeated() {
    let line = "store: {etcd: {endpoints: ['https://root:secret@h:1']}}";
    let error = control_plane(line).unwrap_err();
    assert!(error.contains("store.etcd.endpoints[0]: name user and passwordFile"), "{error}");
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn a_single_endpoint_may_take_longer_than_a_leaders_term() {
    let line = "store: {etcd: {endpoints: ['http://h:1'], requestTimeout: 10s}}";
    control_plane(line).unwrap().check().unwrap();
}

#[test]
fn the_other_replicas_are_the_addresses_that_are_not_ours() {
    let others = |addresses: &str| {
        let config = control_plane(&format!("addresses: [{addresses}]")).unwrap();
        config.other_replicas().map(|others| serde_json::to_string(&others).unwrap())
    };
    assert_eq!(others(""), None);
    assert_eq!(others("'127.0.0.1:1'"), None);
    assert_eq!(others("'a:1', '127.0.0.1:1', 'b:1'").as_deref(), Some(r#"["a:1","b:1"]"#));
}
