use super::*;

fn mesh() -> MeshDomain {
    "mesh.example".parse().unwrap()
}

#[test]
fn spiffe_ids_that_the_specification_allows() {
    for good in [
        "spiffe://td",
        "spiffe://example.org",
        "spiffe://td_x-1.example/a/B/0._-",
        "spiffe://td/...",
        "spiffe://td/.a",
        &format!("spiffe://{}/x", "t".repeat(255)),
        &format!("spiffe://td/{}", "p".repeat(2048 - "spiffe://td/".len())),
    ] {
        let id: SpiffeId = good.parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(id.to_string(), good);
    }
}

#[test]
fn what_is_not_a_spiffe_id() {
    for bad in [
        "",
        "td/x",
        "spiffe:",
        "spiffe:/td/x",
        "spiffe://",
        "spiffe:///path",
        "SPIFFE://td/x",
        "Spiffe://td/x",
        "http://td/x",
        "spiffe://TD/x",
        "spiffe://td/",
        "spiffe://td//x",
        "spiffe://td/x/",
        "spiffe://td/./x",
        "spiffe://td/x/..",
        "spiffe://td/../y",
        "spiffe://td/%61",
        "spiffe://td/a b",
        "spiffe://td/ä",
        "spiffe://ä/x",
        "spiffe://td:443/x",
        "spiffe://user@td/x",
        "spiffe://td/x?q=1",
        "spiffe://td?q=1",
        "spiffe://td/x#f",
        "spiffe://td/\"{{x}}\"",
        "spiffe://td/x\0y",
        "spiffe://td\0/x",
        "spiffe://td%2fx",
        " spiffe://td/x",
        "spiffe://td/x\n",
        &format!("spiffe://{}/x", "t".repeat(256)),
        &format!("spiffe://td/{}", "p".repeat(2049 - "spiffe://td/".len())),
    ] {
        assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?}");
    }
}

#[test]
fn identities_are_read_back_from_their_ids() {
    for (text, identity) in [
        (
            "spiffe://us-west1.mesh.example/ns/shop/sa/checkout",
            Identity::Workload {
                region: "us-west1".parse().unwrap(),
                namespace: "shop".parse().unwrap(),
                service_account: "checkout".parse().unwrap(),
            },
        ),
        (
            "spiffe://us-west1.mesh.example/tombolo/region",
            Identity::ControlPlane { region: "us-west1".parse().unwrap() },
        ),
        (
            "spiffe://us-west1.mesh.example/tombolo/agent/us-west1-a",
            Identity::Agent {
                region: "us-west1".parse().unwrap(),
                cluster: "us-west1-a".parse().unwrap(),
            },
        ),
    ] {
        assert_eq!(identity.spiffe_id(&mesh()).unwrap().to_string(), text);
        assert_eq!(Identity::of(&text.parse().unwrap(), &mesh()).unwrap(), identity);
    }
}

#[test]
fn valid_ids_that_this_mesh_does_not_give_out() {
    for bad in [
        "spiffe://us-west1.mesh.example",
        "spiffe://us-west1.other.example/tombolo/region",
        "spiffe://mesh.example/tombolo/region",
        "spiffe://us-west1xmesh.example/tombolo/region",
        "spiffe://a.us-west1.mesh.example/tombolo/region",
        "spiffe://.mesh.example/tombolo/region",
        "spiffe://us_west1.mesh.example/tombolo/region",
        "spiffe://us-west1.mesh.example/tombolo",
        "spiffe://us-west1.mesh.example/tombolo/region/x",
        "spiffe://us-west1.mesh.example/tombolo/agent",
        "spiffe://us-west1.mesh.example/tombolo/agent/eu-a",
        "spiffe://us-west1.mesh.example/tombolo/agent/us-west1-",
        "spiffe://us-west1.mesh.example/ns/shop/sa",
        "spiffe://us-west1.mesh.example/ns/Shop/sa/checkout",
        "spiffe://us-west1.mesh.example/ns/shop/sa/Check_out",
        "spiffe://us-west1.mesh.example/ns/shop/sa/checkout/x",
        "spiffe://us-west1.mesh.example/sa/checkout/ns/shop",
    ] {
        let id: SpiffeId = bad.parse().unwrap();
        assert!(Identity::of(&id, &mesh()).is_err(), "{bad:?}");
    }
}

#[test]
fn a_trust_domain_too_long_for_spiffe_is_an_error() {
    let mesh: MeshDomain =
        ["m".repeat(63), "m".repeat(63), "m".repeat(63), "m".repeat(61)].join(".").parse().unwrap();
    let identity = Identity::ControlPlane { region: "us-west1".parse().unwrap() };
    assert!(identity.spiffe_id(&mesh).unwrap_err().to_string().contains("255"));
}

#[test]
fn origins_read_back() {
    for good in ["us-west1-a", "us-west1-a/7b5e-1"] {
        assert_eq!(good.parse::<Origin>().unwrap().to_string(), good);
    }
    for bad in ["", "/", "a/", "a/b/c", "A", "a/b c", &format!("a/{}", "x".repeat(64))] {
        assert!(bad.parse::<Origin>().is_err(), "{bad:?}");
    }
}
