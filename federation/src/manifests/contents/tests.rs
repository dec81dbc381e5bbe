use std::fmt::Write;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: checkout, namespace: shop}\n";
const SLICE: &str = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
    metadata: {name: checkout-1, labels: {kubernetes.io/service-name: checkout}}\n";

fn problems(contents: &Contents) -> String {
    contents.broken.iter().fold(String::new(), |mut all, broken| {
        writeln!(all, "{}", broken.problem).unwrap();
        all
    })
}

/// What is wrong with `text`, or "" if it is read as one object.
#[track_caller]
fn check(text: &str, expected: &str) {
    let contents = Contents::of("a.yaml", text, false);
    assert_eq!(problems(&contents).trim_end(), expected);
    assert_eq!(contents.objects.len(), usize::from(expected.is_empty()), "{contents:?}");
}

#[track_caller]
fn service(spec: &str, expected: &str) {
    let expected = match expected {
        "" => String::new(),
        why => format!("a.yaml, document 1 (line 1): Service shop/checkout: {why}"),
    };
    check(&format!("{SERVICE}spec: {spec}\n"), &expected);
}

#[track_caller]
fn slice(rest: &str, expected: &str) {
    let expected = match expected {
        "" => String::new(),
        why => format!("a.yaml, document 1 (line 1): EndpointSlice default/checkout-1: {why}"),
    };
    check(&format!("{SLICE}{rest}\n"), &expected);
}

#[test]
fn services_name_the_field_and_what_was_expected() {
    service("{ports: [{port: 80}]}", "");
    service("{ports: [{name: a, port: 80}, {name: b, port: 80, protocol: UDP}]}", "");
    service("{clusterIP: None}", "");
    service("{type: ExternalName, externalName: example.com}", "");
    service("{ports: [{port: 70000}]}", "spec.ports[0].port: has 70000, expected 1 to 65535");
    service("{ports: [{name: http}]}", "spec.ports[0].port: has 0, expected 1 to 65535");
    service(
        "{ports: [{port: http}]}",
        "spec.ports[0].port: has string \"http\", expected a whole number",
    );
    service(
        "{ports: [{port: 80, targetPort: 0}]}",
        "spec.ports[0].targetPort: has 0, expected 1 to 65535",
    );
    service(
        "{ports: [{port: 80, protocol: HTTP}]}",
        "spec.ports[0].protocol: has \"HTTP\", expected TCP, UDP or SCTP",
    );
    service(
        "{ports: [{port: 80}, {port: 81}]}",
        "spec.ports[0].name: is missing, expected a name, as there are several ports",
    );
    service(
        "{ports: [{name: a, port: 80}, {name: a, port: 81}]}",
        "spec.ports[1]: has the name \"a\" again, expected each only once",
    );
    service(
        "{ports: [{name: a, port: 80}, {name: b, port: 80}]}",
        "spec.ports[1]: has TCP port 80 again, expected each only once",
    );
    service(
        "{ports: [{name: Web_1, port: 80}]}",
        "spec.ports[0].name: has \"Web_1\", expected a DNS label (1 to 63 of a-z, 0-9 and '-')",
    );
    service("{ports: 80}", "spec.ports: has integer `80`, expected a sequence");
    service("{ports: [80]}", "spec.ports[0]: has integer `80`, expected a mapping (ServicePort)");
    service("{}", "spec.ports: is empty, expected at least one port");
    service("null", "spec: is missing, expected the Service's ports");
    service(
        "{type: Internal}",
        "spec.type: has \"Internal\", expected ClusterIP, NodePort, LoadBalancer or ExternalName",
    );
    service(
        "{clusterIP: 10.0.0.300, ports: [{port: 80}]}",
        "spec.clusterIP: has \"10.0.0.300\", expected an IP or None",
    );
    service(
        "{ports: [{port: 80}], ipFamilies: [IPv5]}",
        "spec.ipFamilies[0]: has \"IPv5\", expected IPv4 or IPv6",
    );
    service(
        "{ports: [{port: 80}], sessionAffinity: ClientIP, \
         sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}",
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds: has 0, expected 1 to 86400",
    );
}

#[test]
fn slices_name_the_field_and_what_was_expected() {
    slice("addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.0.0.1]}]", "");
    slice("addressType: IPv4\nendpoints: null\nports: null", "");
    slice("endpoints: []", "addressType: is missing, expected IPv4, IPv6 or FQDN");
    slice("addressType: IP", "addressType: has \"IP\", expected IPv4, IPv6 or FQDN");
    slice(
        "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.256]}]",
        "endpoints[1].addresses[0]: has \"10.0.0.256\", expected an IPv4 address, as addressType \
         says",
    );
    slice(
        "addressType: IPv6\nendpoints: [{addresses: [\"::ffff:10.0.0.1\"]}]",
        "endpoints[0].addresses[0]: has \"::ffff:10.0.0.1\", expected an IPv6 address, as \
         addressType says",
    );
    slice(
        "addressType: IPv4\nendpoints: [{addresses: []}]",
        "endpoints[0].addresses: is empty, expected an address",
    );
    slice(
        "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], conditions: {ready: yep}}]",
        "endpoints[0].conditions.ready: has string \"yep\", expected true or false",
    );
    slice(
        "addressType: IPv4\nports: [{name: http}]",
        "ports[0].port: is missing, expected 1 to 65535",
    );
    slice(
        "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], hostname: a.b}]",
        "endpoints[0].hostname: has \"a.b\", expected a DNS label (1 to 63 of a-z, 0-9 and '-')",
    );
}

#[test]
fn names_and_syntax_are_located() {
    check(
        "apiVersion: v1\nkind: Service\nmetadata: {name: Check_Out}",
        "a.yaml, document 1 (line 1): Service default/Check_Out: metadata.name: \"Check_Out\" is \
         not a service name: expected a DNS label: 1 to 63 of a-z, 0-9 and '-', starting and \
         ending with a letter or digit",
    );
    check(
        "apiVersion: v1\nkind: Namespace\nmetadata: {}",
        "a.yaml, document 1 (line 1): Namespace (no name): metadata.name: is missing, expected \
         the object's name",
    );
    check(
        "kind: Service\nmetadata: {name: checkout}",
        "a.yaml, document 1 (line 1): apiVersion: is missing, expected that of a Kubernetes object",
    );
    let broken = "# head\n---\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec: [\n";
    let contents = Contents::of("a.yaml", broken, false);
    let found = problems(&contents);
    assert!(found.starts_with("a.yaml, document 1 (line "), "{found}");
    assert!(found.contains(": Service default/a: "), "{found}");
    let duplicate = format!("{SERVICE}spec: {{ports: [{{port: 80}}]}}\nspec: {{}}\n");
    let found = problems(&Contents::of("a.yaml", &duplicate, false));
    assert!(found.contains("(line 5)") && found.contains("duplicate"), "{found}");
}

#[test]
fn one_broken_document_or_item_takes_no_other_with_it() {
    let good = format!("{SERVICE}spec: {{ports: [{{port: 80}}]}}\n");
    let text = format!(
        "{good}---\napiVersion: v1\nkind: Service\nmetadata: {{name: [\n---\n{}",
        good.replace("checkout", "cart")
    );
    let contents = Contents::of("a.yaml", &text, false);
    assert_eq!((contents.objects.len(), contents.broken.len()), (2, 1), "{contents:?}");

    let list = "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n  \
                spec: {ports: [{port: 1}]}\n- metadata: {name: b}\n  spec: {ports: [{port: 0}]}\n\
                - 7\n";
    let contents = Contents::of("a.yaml", list, false);
    assert_eq!(contents.objects.len(), 1);
    assert_eq!(
        problems(&contents),
        "a.yaml, document 1 (line 1): Service default/b: items[1].spec.ports[0].port: has 0, \
         expected 1 to 65535\n"
    );
    assert_eq!(contents.not_kubernetes, 1);
}

#[test]
fn json_is_read_as_one_or_several_values() {
    let object = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "NAME"}}"#;
    let text = format!("{}\n\n{}", object.replace("NAME", "a"), object.replace("NAME", "b"));
    let contents = Contents::of("a.json", &text, false);
    let lines: Vec<_> = contents.objects.iter().map(|found| found.place.line).collect();
    assert_eq!(lines, [Some(1), Some(3)]);
    let cut = Contents::of("a.json", &text[..text.len() - 10], false);
    assert_eq!(cut.objects.len(), 1);
    let found = problems(&cut);
    assert!(found.starts_with("a.json, document 2 (line 3)") && found.contains("EOF"), "{found}");
    // JSON is YAML.
    assert_eq!(Contents::of("a.yaml", &object.replace("NAME", "a"), false).objects.len(), 1);
}

#[test]
fn what_is_not_ours_is_counted() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: [\n---\n\
                apiVersion: serving.knative.dev/v1\nkind: Service\n---\n\
                apiVersion: v1\nkind: Endpoints\n---\n\
                apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n---\n\
                replicaCount: 1\n---\nname: {{ .Values.name }}\n---\n\
                apiVersion: v1\nkind: Service\nmetadata: {name: '{{ .Values.name }}'}\n---\n\
                a: [\n";
    let contents = Contents::of("a.yaml", text, false);
    assert_eq!(problems(&contents), "");
    let kinds: Vec<_> = contents.other_kinds.keys().map(String::as_str).collect();
    assert_eq!(
        kinds,
        [
            "Deployment.apps",
            "EndpointSlice.v1beta1.discovery.k8s.io",
            "Endpoints",
            "Service.serving.knative.dev"
        ]
    );
    assert_eq!((contents.templates, contents.not_kubernetes), (2, 2));
}

#[test]
fn syntax_errors_say_what_is_wrong_and_in_which_line() {
    let check = |text: &str, expected: &str| {
        let error = parse::yaml(text).unwrap_err();
        assert_eq!(format!("{}: {}", error.line, error.message), expected);
    };
    check("a: 1\n\tb: 2", "1: is not YAML: while scanning a plain scalar, found a tab");
    check(
        "a:\n  b: 1\n c: 2",
        "3: is not YAML: while parsing a block mapping, did not find expected key",
    );
    check("a: 'x", "1: is not YAML: unclosed quote");
    check("a: {b", "1: is not YAML: unclosed bracket '{'");
    check("a\nb: 1", "2: is not YAML: mapping values are not allowed in this context");
    check("a: *x", "1: is not YAML: alias references unknown anchor");
    check("a: 1\na: 2", "2: is not YAML: duplicate mapping key: a");
    let (error, _) = parse::json("{\"a\": 1,}").error.unwrap();
    assert_eq!((error.line, &*error.message), (1, "is not JSON: trailing comma"));
}

/// Neither the time nor the memory that a small file costs may be without bound.
#[test]
fn bombs_end_early() {
    let mut laughs =
        "apiVersion: v1\nkind: Service\na0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let alias = format!("*a{}", n - 1);
        writeln!(laughs, "a{n}: &a{n} [{}]", [alias.as_str(); 9].join(", ")).unwrap();
    }
    let long = format!(
        "apiVersion: v1\nkind: Service\na: &a {}\nb: [{}]\n",
        "x".repeat(1 << 20),
        vec!["*a"; 50_000].join(", ")
    );
    let deep = format!("apiVersion: v1\nkind: Service\na: {}", "[".repeat(100_000));
    let nested = (0..5000).fold(String::new(), |text, depth| text + &" ".repeat(depth) + "a:\n");
    let nested = format!("apiVersion: v1\nkind: Service\n{nested}");
    let squared = format!(
        "apiVersion: v1\nkind: Service\na: &a {}\nb: &b [{}]\nc: [{}]\n",
        "x".repeat(1 << 20),
        vec!["*a"; 200].join(", "),
        vec!["*b"; 200].join(", ")
    );
    for bomb in [laughs, long, squared, deep, nested] {
        let start = Instant::now();
        let contents = Contents::of("a.yaml", &bomb, false);
        assert_eq!(contents.broken.len(), 1, "{:?}", contents.objects.len());
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
    let deep =
        format!("{{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"a\": {}", "[".repeat(100_000));
    assert_eq!(Contents::of("a.json", &deep, false).objects.len(), 0);
}

fn good() -> String {
    format!(
        "{SERVICE}spec: {{ports: [{{name: http, port: 80, targetPort: web}}]}}\n---\n{SLICE}\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n- addresses: \
         [10.0.0.1]\n  conditions: {{ready: true}}\n---\napiVersion: v1\nkind: List\nitems:\n- \
         apiVersion: multicluster.x-k8s.io/v1beta1\n  kind: ServiceExport\n  metadata: {{name: \
         checkout, namespace: shop}}\n  spec: {{exportedLabels: {{a: b}}}}\n"
    )
}

#[test]
fn the_text_that_is_mutated_is_good() {
    assert_eq!(Contents::of("a.yaml", &good(), false).objects.len(), 3);
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}", defined: bool) {
        Contents::of("a.yaml", &text, defined);
        Contents::of("a.json", &text, defined);
    }

    #[test]
    fn no_mutation_panics(
        edits in proptest::collection::vec((any::<u16>(), any::<char>(), 0_u8..3), 1..8),
        defined: bool,
    ) {
        let mut text: Vec<char> = good().chars().collect();
        for (at, with, how) in edits {
            let at = usize::from(at) % text.len();
            match how {
                0 => text[at] = with,
                1 => text.insert(at, ['\n', ':', '{', '[', '-', '&', '*', '"'][with as usize % 8]),
                _ => drop(text.remove(at)),
            }
        }
        let text: String = text.into_iter().collect();
        Contents::of("a.yaml", &text, defined);
        Contents::of("a.json", &text, defined);
    }
}
