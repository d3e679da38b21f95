//! Credentials files (`--nats-creds`), on a nats-server whose accounts are managed by JWT.

use std::{path::PathBuf, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use edd_events::{
    connect::{ConnectError, NatsOptions, connect, is_connected},
    testing::NatsServer,
};
use futures_util::StreamExt as _;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{DEADLINE, eventually};

/// A server that believes its operator, who has told it of one account.
struct Site {
    server: NatsServer,
    account: KeyPair,
    files: TempDir,
}

/// Who `subject` is, signed by `issuer`, in the form of NATS.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: &Value) -> String {
    let part = |json: Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
    let head = part(json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let claims = part(json!({
        "jti": "test",
        "iat": 1_700_000_000,
        "iss": issuer.public_key(),
        "sub": subject.public_key(),
        "name": "test",
        "nats": nats,
    }));
    let signed = format!("{head}.{claims}");
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

/// As `nsc generate creds` writes them.
fn creds(jwt: &str, seed: &str) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         NKEY Seed printed below can be used to sign and prove identity.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

/// The credentials of a new user of an account, and its seed.
fn user_of(account: &KeyPair) -> (String, String) {
    let user = KeyPair::new_user();
    let seed = user.seed().unwrap();
    let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    (creds(&jwt(account, &user, &claims), &seed), seed)
}

impl Site {
    async fn start() -> Self {
        let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
        let claims = json!({ "type": "operator", "version": 2 });
        let of_operator = jwt(&operator, &operator, &claims);
        let limits = json!({ "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
            "wildcards": true, "conn": -1, "leaf": -1 });
        let claims = json!({ "type": "account", "version": 2, "limits": limits });
        let of_account = jwt(&operator, &account, &claims);
        let config = format!(
            "operator: \"{of_operator}\"\nresolver: MEMORY\n\
             resolver_preload: {{ {}: \"{of_account}\" }}\n",
            account.public_key()
        );
        Self {
            server: NatsServer::start_with(&config, Vec::new()).await,
            account,
            files: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let file = self.files.path().join(name);
        std::fs::write(&file, content).unwrap();
        file
    }

    fn options(&self, creds: PathBuf) -> NatsOptions {
        NatsOptions {
            url: self.server.url(),
            creds: Some(creds),
            name: "edd-test".to_owned(),
            ..NatsOptions::default()
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_a_known_account_is_let_in_and_no_other() {
    let site = Site::start().await;
    let (good, _) = user_of(&site.account);
    let (strange, _) = user_of(&KeyPair::new_account());
    // The user of one file with the key of another.
    let (_, seed) = user_of(&site.account);
    let jwt = good.lines().nth(1).unwrap();
    let options = site.options(site.file("good.creds", &good));
    options.check_identity().unwrap();
    let client = connect(&options).await.unwrap();
    let talk = async {
        let mut heard = client.subscribe("some.subject").await.unwrap();
        client
            .publish("some.subject", "hello".into())
            .await
            .unwrap();
        heard.next().await.unwrap().payload
    };
    let heard = tokio::time::timeout(DEADLINE, talk).await;
    assert_eq!(heard.expect("it comes back in time"), "hello");

    // Well-formed files that the server does not take: it may know them later.
    let mut refused = Vec::new();
    for (name, content) in [
        ("strange.creds", strange),
        ("mixed.creds", creds(jwt, &seed)),
    ] {
        let options = site.options(site.file(name, &content));
        options.check_identity().unwrap();
        refused.push(connect(&options).await.expect("tries in the background"));
        eventually(name, || async {
            site.server.log().matches("authentication error").count() >= refused.len()
        })
        .await;
    }
    tokio::time::timeout(Duration::from_millis(200), async {
        for client in &refused {
            assert!(!is_connected(client));
            assert!(client.flush().await.is_err());
        }
    })
    .await
    .expect_err("a flush waits for a connection");
    assert!(is_connected(&client));
}

/// A mistake of the configuration, found before anything is connected, and never quoted.
#[tokio::test]
async fn a_damaged_file_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (good, seed) = user_of(&KeyPair::new_account());
    let cut = &seed[..57];
    let jwt = good.lines().nth(1).unwrap();
    let (without_seed, _) = good.split_once("-----BEGIN USER").unwrap();
    for (name, content) in [
        ("empty", String::new()),
        ("seed", seed.clone()),
        ("without_seed", without_seed.to_owned()),
        ("cut", creds(jwt, cut)),
        ("changed", creds(jwt, &seed.replacen("SU", "SUA", 1)[..58])),
    ] {
        let file = folder.path().join(name);
        std::fs::write(&file, &content).unwrap();
        let options = NatsOptions {
            url: "nats://127.0.0.1:1".to_owned(),
            creds: Some(file),
            ..NatsOptions::default()
        };
        for error in [
            options.check_identity().unwrap_err(),
            connect(&options).await.unwrap_err(),
        ] {
            assert!(matches!(error, ConnectError::Creds { .. }), "{error:?}");
            let text = format!("{error} {error:?}");
            assert!(text.contains(name), "{text}");
            for secret in [&seed[4..30], jwt] {
                assert!(!text.contains(secret), "{name}: {text}");
            }
        }
    }
}
