//! Registration, change and deletion over REST.

use serde_json::json;

use crate::support::{AuthClient as _, PASSWORD, Service};

#[tokio::test]
async fn registration_answers_with_a_session() {
    let service = Service::start().await;
    let body = json!({ "username": "alice", "password": PASSWORD, "display_name": "Alice A." });
    let answer = service.client.post("/api/register", None, &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.body["user_id"], 1);
    assert_eq!(answer.body["username"], "alice");
    assert_eq!(answer.body["display_name"], "Alice A.");
    assert_eq!(answer.body["public_id"].as_str().unwrap().len(), 6);
    assert!(
        answer.head.contains("cache-control: no-store"),
        "{answer:?}"
    );
    assert!(
        service
            .client
            .is_valid(answer.body["token"].as_str().unwrap())
            .await
    );
    service.stop().await;
}

#[tokio::test]
async fn a_name_is_given_once_at_a_time() {
    let service = Service::start().await;
    let first = service.register("alice").await;
    let body = json!({ "username": "alice", "password": PASSWORD });
    service
        .client
        .post("/api/register", None, &body)
        .await
        .assert_error(409, "username_taken");

    let path = format!("/api/users/{}", first.id);
    assert_eq!(
        service
            .client
            .delete(&path, Some(&first.token))
            .await
            .status,
        204
    );
    let second = service.register("alice").await;
    assert!(second.id > first.id, "an id is never given twice");
    service.stop().await;
}

#[tokio::test]
async fn of_many_registrations_of_one_name_one_succeeds() {
    let service = Service::start().await;
    let body = json!({ "username": "alice", "password": PASSWORD });
    let all: Vec<_> = (0..8)
        .map(|_| {
            let (client, body) = (service.client, body.clone());
            tokio::spawn(async move { client.post("/api/register", None, &body).await.status })
        })
        .collect();
    let mut statuses = Vec::new();
    for one in all {
        statuses.push(one.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);
    service.stop().await;
}

#[tokio::test]
async fn bad_names_and_passwords_are_refused() {
    let service = Service::start().await;
    let long = "x".repeat(129);
    let cases = [
        ("a", PASSWORD, "invalid_username"),
        ("Alice", PASSWORD, "invalid_username"),
        ("../etc", PASSWORD, "invalid_username"),
        ("al\u{0}ice", PASSWORD, "invalid_username"),
        ("' OR 1=1 --", PASSWORD, "invalid_username"),
        ("alice", "short", "invalid_password"),
        ("alice", &long, "invalid_password"),
    ];
    for (username, password, code) in cases {
        let body = json!({ "username": username, "password": password });
        service
            .client
            .post("/api/register", None, &body)
            .await
            .assert_error(400, code);
    }
    let body = json!({ "username": "alice", "password": PASSWORD, "display_name": "a\nb" });
    service
        .client
        .post("/api/register", None, &body)
        .await
        .assert_error(400, "invalid_display_name");
    service.stop().await;
}

#[tokio::test]
async fn hostile_bodies_get_the_error_form() {
    let service = Service::start().await;
    let deep = "[".repeat(20_000);
    let wide = format!(
        r#"{{"username":"alice","password":"{}"}}"#,
        "x".repeat(70_000)
    );
    for path in ["/api/register", "/api/login"] {
        let post = async |body: &str| service.client.json("POST", path, None, body).await;
        for body in [
            "",
            "{",
            "nul",
            "{\"username\":\"alice\",}",
            "\u{1}",
            r#"{"username":"\ud800"}"#,
        ] {
            post(body).await.assert_error(400, "invalid_json");
        }
        for body in [
            "null",
            "7",
            "{}",
            r#"{"username":1,"password":2}"#,
            r#"{"username":"alice"}"#,
            r#"{"username":null,"password":null}"#,
            r#"{"username":["alice"],"password":"correct horse"}"#,
        ] {
            post(body).await.assert_error(400, "invalid_body");
        }
        let nested = post(&deep).await;
        assert_eq!(nested.status, 400, "{nested:?}");
        post(&wide).await.assert_error(413, "body_too_large");
        let form = "Content-Type: application/x-www-form-urlencoded\r\n";
        service
            .client
            .call("POST", path, form, "username=alice&password=x")
            .await
            .assert_error(415, "unsupported_media_type");
        service
            .client
            .get(path, None)
            .await
            .assert_error(405, "method_not_allowed");
    }
    service
        .client
        .get("/api/nothing", None)
        .await
        .assert_error(404, "not_found");
    assert!(
        service.register("alice").await.id >= 1,
        "the service still works"
    );
    service.stop().await;
}

#[tokio::test]
async fn a_user_changes_its_own_display_name_only() {
    let service = Service::start_with(&["--admin-users", "root"]).await;
    let (alice, bob) = (
        service.register("alice").await,
        service.register("bob").await,
    );
    let path = format!("/api/users/{}", alice.id);
    let body = json!({ "display_name": "Alice the First" });

    let answer = service.client.put(&path, Some(&alice.token), &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.body["display_name"], "Alice the First");
    let session = service.client.get("/api/session", Some(&alice.token)).await;
    assert_eq!(session.body["display_name"], "Alice the First");

    service
        .client
        .put(&path, Some(&bob.token), &body)
        .await
        .assert_error(403, "forbidden");
    service
        .client
        .put(&path, None, &body)
        .await
        .assert_error(401, "unauthorized");
    let bad = json!({ "display_name": "" });
    let answer = service.client.put(&path, Some(&alice.token), &bad).await;
    answer.assert_error(400, "invalid_display_name");

    let root = service.register("root").await;
    assert_eq!(
        service
            .client
            .put(&path, Some(&root.token), &body)
            .await
            .status,
        200
    );
    let nobody = service
        .client
        .put("/api/users/99", Some(&root.token), &body)
        .await;
    nobody.assert_error(404, "not_found");
    service.stop().await;
}

#[tokio::test]
async fn deletion_is_for_oneself_and_admins() {
    let service = Service::start_with(&["--admin-users", "root"]).await;
    // The first to register is nobody special.
    let (first, bob) = (
        service.register("first").await,
        service.register("bob").await,
    );
    let root = service.register("root").await;
    let path = |id: i64| format!("/api/users/{id}");
    let delete = async |id: i64, token: &str| service.client.delete(&path(id), Some(token)).await;

    delete(bob.id, &first.token)
        .await
        .assert_error(403, "forbidden");
    delete(99, &first.token)
        .await
        .assert_error(403, "forbidden");
    service
        .client
        .delete(&path(bob.id), None)
        .await
        .assert_error(401, "unauthorized");
    assert!(service.client.is_valid(&bob.token).await);

    assert_eq!(delete(first.id, &first.token).await.status, 204);
    delete(first.id, &first.token)
        .await
        .assert_error(401, "unauthorized");

    assert_eq!(delete(bob.id, &root.token).await.status, 204);
    assert_eq!(
        delete(bob.id, &root.token).await.status,
        204,
        "the same answer again"
    );
    assert!(
        !service.client.is_valid(&bob.token).await,
        "sessions go with their user"
    );
    assert_eq!(service.client.log_in("bob", PASSWORD).await.status, 401);
    for id in ["99", "0", "-1", "x", "1.5", "9223372036854775808", "%00"] {
        let answer = service
            .client
            .delete(&format!("/api/users/{id}"), Some(&root.token))
            .await;
        assert!(matches!(answer.status, 403 | 404), "{id}: {answer:?}");
    }
    service.stop().await;
}

#[tokio::test]
async fn the_name_of_a_deleted_admin_is_not_given_again() {
    let service = Service::start_with(&["--admin-users", "root"]).await;
    for name in ["alice", "root"] {
        let account = service.register(name).await;
        let path = format!("/api/users/{}", account.id);
        let deleted = service.client.delete(&path, Some(&account.token)).await;
        assert_eq!(deleted.status, 204, "{deleted:?}");
    }
    // Nothing goes with any other name.
    service.register("alice").await;
    let body = json!({ "username": "root", "password": PASSWORD });
    let answer = service.client.post("/api/register", None, &body).await;
    answer.assert_error(409, "username_taken");

    // The name is remembered, and free once it is not listed any more.
    let folder = service.stop().await;
    let flags = ["--admin-users", "root"];
    let service = Service::start_in(folder, &flags, |_| ()).await;
    let answer = service.client.post("/api/register", None, &body).await;
    answer.assert_error(409, "username_taken");
    let folder = service.stop().await;
    let service = Service::start_in(folder, &[], |_| ()).await;
    service.register("root").await;
    service.stop().await;
}

#[tokio::test]
async fn only_named_users_are_admins() {
    let service = Service::start_with(&["--admin-users", "root"]).await;
    let (alice, root) = (
        service.register("alice").await,
        service.register("root").await,
    );
    for (account, expected) in [(alice, false), (root, true)] {
        let session = service
            .client
            .get("/api/session", Some(&account.token))
            .await;
        assert_eq!(session.body["is_admin"], expected, "{session:?}");
        assert_eq!(session.body["username"], account.username);
    }
    service.stop().await;
}
