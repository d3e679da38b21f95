//! The same statements on both engines, each a real one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use edd_store::testing::Postgres;
use edd_store::{
    Database, DatabaseUrl, Engine, Rows, Schema, Script, Step, is_about_values, query,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

const SCHEMA: Schema = Schema {
    postgres: &[(
        1,
        "things",
        "CREATE TABLE things (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, \
         name TEXT NOT NULL UNIQUE, port INTEGER, bytes BYTEA, is_on BOOLEAN NOT NULL)",
    )],
    sqlite: &[(
        1,
        "things",
        "CREATE TABLE things (id INTEGER PRIMARY KEY AUTOINCREMENT, \
         name TEXT NOT NULL UNIQUE, port INTEGER, bytes BLOB, is_on INTEGER NOT NULL) STRICT",
    )],
};

#[derive(Debug, PartialEq, sqlx::FromRow)]
struct Thing {
    id: i64,
    name: String,
    port: Option<i32>,
    bytes: Option<Vec<u8>>,
    is_on: bool,
}

/// An empty database of each engine.
async fn each() -> (TempDir, [Database; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/a.db");
    let sqlite: DatabaseUrl = format!("sqlite://{}", path.display()).parse().unwrap();
    let postgres = Postgres::shared().await.database().await;
    let databases = [
        Database::open(&sqlite).await.unwrap(),
        Database::open_durable(&postgres).await.unwrap(),
    ];
    assert_eq!(databases[0].engine(), Engine::Sqlite);
    assert_eq!(databases[1].engine(), Engine::Postgres);
    (folder, databases)
}

async fn names(database: &Database) -> Vec<String> {
    let sql = "SELECT name FROM things ORDER BY id";
    query(sql).values(database).await.unwrap()
}

async fn add(database: &Database, name: &str) -> edd_store::Result<u64> {
    query("INSERT INTO things (name, is_on) VALUES ($1, $2)")
        .bind(name)
        .bind(true)
        .run(database)
        .await
}

#[tokio::test]
async fn values_go_in_and_come_out_the_same() {
    let (_folder, databases) = each().await;
    for database in databases {
        database.migrate(SCHEMA).await.unwrap();
        database.migrate(SCHEMA).await.unwrap();
        let sql = "INSERT INTO things (name, port, bytes, is_on) VALUES ($1, $2, $3, $4) \
                   RETURNING *";
        let full: Thing = query(sql)
            .bind("full")
            .bind(65_535_u16)
            .bind(vec![0, 255])
            .bind(true)
            .one(&database)
            .await
            .unwrap();
        let expected = Thing {
            id: 1,
            name: "full".into(),
            port: Some(65_535),
            bytes: Some(vec![0, 255]),
            is_on: true,
        };
        assert_eq!(full, expected);
        let empty: Thing = query(sql)
            .bind("empty")
            .bind(None::<i64>)
            .bind(edd_store::Value::Bytes(None))
            .bind(false)
            .one(&database)
            .await
            .unwrap();
        assert_eq!((empty.port, empty.bytes, empty.is_on), (None, None, false));
        let none: Option<Thing> = query("SELECT * FROM things WHERE name = $1")
            .bind("nobody")
            .optional(&database)
            .await
            .unwrap();
        assert_eq!(none, None);
        let again = add(&database, "full").await.unwrap_err();
        assert!(again.as_database_error().unwrap().is_unique_violation());
        assert!(is_about_values(&again));
        // A column of another type, one that may be empty, and one that may not: another schema.
        let other = query("SELECT name FROM things").values::<i64>(&database);
        assert!(!is_about_values(&other.await.unwrap_err()));
        let empty = query("SELECT port FROM things WHERE port IS NULL").values::<i32>(&database);
        // SQLite takes it for 0.
        assert!(!empty.await.is_err_and(|error| is_about_values(&error)));
        let missing = query("INSERT INTO things (name) VALUES ('half')").run(&database);
        assert!(!is_about_values(&missing.await.unwrap_err()));
        let count: i64 = query("SELECT COUNT(*) FROM things")
            .value(&database)
            .await
            .unwrap();
        assert_eq!(count, 2);
        database.close().await;
    }
}

#[tokio::test]
async fn many_rows_are_one_statement() {
    let (_folder, databases) = each().await;
    for database in databases {
        database.migrate(SCHEMA).await.unwrap();
        let rows: Rows = (0..500)
            .map(|n| json!([format!("it's {n}"), (n % 2 == 0).then_some(n), n % 2 == 0]))
            .collect();
        let sql = "INSERT INTO things (name, port, is_on) SELECT value ->> 0, \
                   CAST(value ->> 1 AS INTEGER), value ->> 1 IS NOT NULL FROM {rows} WHERE true \
                   ON CONFLICT (name) DO UPDATE SET port = excluded.port";
        for _ in 0..2 {
            let changed = rows.clone().query(database.engine(), sql).run(&database);
            assert_eq!(changed.await.unwrap(), 500);
        }
        let parts: Vec<_> = rows.clone().parts(200).collect();
        assert_eq!(parts.len(), 3);
        let mut changed = 0;
        for part in parts {
            changed += part
                .query(database.engine(), sql)
                .run(&database)
                .await
                .unwrap();
        }
        assert_eq!(changed, 500);
        assert_eq!(Rows::default().parts(1).count(), 0);
        let even: (i64, i64) = query("SELECT COUNT(*), COUNT(port) FROM things")
            .one(&database)
            .await
            .unwrap();
        assert_eq!(even, (500, 250));
        database.close().await;
    }
}

#[tokio::test]
async fn a_transaction_is_whole_or_nothing_and_alone() {
    let (_folder, databases) = each().await;
    for database in databases {
        database.migrate(SCHEMA).await.unwrap();
        let mut dropped = database.begin().await.unwrap();
        query("INSERT INTO things (name, is_on) VALUES ('gone', $1)")
            .bind(true)
            .run(&mut dropped)
            .await
            .unwrap();
        drop(dropped);
        // Each reads the count and writes it: alone, no two read the same.
        let writers = (0..20).map(|_| {
            let database = database.clone();
            tokio::spawn(async move {
                let mut tx = database.begin().await.unwrap();
                let count: i64 = query("SELECT COUNT(*) FROM things")
                    .value(&mut tx)
                    .await
                    .unwrap();
                query("INSERT INTO things (name, is_on) VALUES ($1, $2)")
                    .bind(count.to_string())
                    .bind(true)
                    .run(&mut tx)
                    .await
                    .unwrap();
                tx.commit().await.unwrap();
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        let expected: Vec<_> = (0..20).map(|n: i32| n.to_string()).collect();
        assert_eq!(names(&database).await, expected);
        let mut reader = database.begin_read().await.unwrap();
        let count = "SELECT COUNT(*) FROM things";
        let before: i64 = query(count).value(&mut reader).await.unwrap();
        add(&database, "later").await.unwrap();
        let after: i64 = query(count).value(&mut reader).await.unwrap();
        assert_eq!(before, after, "one instant");
        drop(reader);
        database.close().await;
    }
}

#[tokio::test]
async fn a_script_is_whole_or_nothing_and_tells_its_numbers() {
    let (_folder, databases) = each().await;
    for database in databases {
        database.migrate(SCHEMA).await.unwrap();
        let insert = |name: &str, port: u16| {
            query("INSERT INTO things (name, port, is_on) VALUES ($1, $2, $3)")
                .bind(name)
                .bind(port)
                .bind(true)
        };
        let count = || query("SELECT COUNT(*) FROM things");
        let ports = || query("SELECT CAST(port AS BIGINT) FROM things ORDER BY id");
        for first in [10, 30] {
            let mut script = Script::default();
            script.push(count());
            script.push(insert(&format!("a{first}"), first));
            script.push(insert(&format!("b{first}"), first + 10));
            script.push(ports());
            let tx = database.begin().await.unwrap();
            let numbers = script.commit(tx).await.unwrap();
            let expected: &[i64] = match first {
                10 => &[0, 10, 20],
                _ => &[2, 10, 20, 30, 40],
            };
            assert_eq!(numbers, expected);
        }
        let mut failing = Script::default();
        failing.push(insert("c", 50));
        failing.push(insert("a10", 60));
        failing.push(insert("d", 70));
        let tx = database.begin().await.unwrap();
        let error = failing.commit(tx).await.unwrap_err();
        assert!(error.as_database_error().unwrap().is_unique_violation());
        assert_eq!(names(&database).await, ["a10", "b10", "a30", "b30"]);
        let mut dropped = Script::default();
        dropped.push(insert("e", 80));
        let mut tx = database.begin().await.unwrap();
        dropped.run(&mut tx).await.unwrap();
        drop(tx);
        add(&database, "f").await.unwrap();
        assert_eq!(names(&database).await.last().unwrap(), "f");
        let empty = database.begin().await.unwrap();
        assert!(Script::default().commit(empty).await.unwrap().is_empty());
        database.close().await;
    }
}

/// Whoever gives up in the middle leaves nothing behind, and nobody waits for it.
#[tokio::test]
async fn a_writer_that_gives_up_is_undone() {
    let (_folder, databases) = each().await;
    for database in databases {
        database.migrate(SCHEMA).await.unwrap();
        for steps in 0..12 {
            let writing = async {
                let mut tx = database.begin().await?;
                query("INSERT INTO things (name, is_on) VALUES ('half', $1)")
                    .bind(true)
                    .run(&mut tx)
                    .await?;
                // It never gets to its commit.
                std::future::pending::<edd_store::Result<()>>().await
            };
            let mut writing = Box::pin(writing);
            for _ in 0..steps {
                let _ = poll_once(writing.as_mut()).await;
                tokio::task::yield_now().await;
            }
            drop(writing);
            add(&database, &steps.to_string()).await.unwrap();
        }
        let expected: Vec<_> = (0..12).map(|n: i32| n.to_string()).collect();
        assert_eq!(names(&database).await, expected);
        database.close().await;
    }
}

/// At whatever point somebody gives up to begin, what others write then is theirs alone.
#[tokio::test]
async fn a_beginning_that_is_given_up_takes_nobody_along() {
    let (_folder, databases) = each().await;
    for database in databases {
        database.migrate(SCHEMA).await.unwrap();
        let mut names_added = Vec::new();
        for waits in 1..8 {
            for is_reader in [false, true] {
                let beginning = async {
                    let tx = match is_reader {
                        false => database.begin().await,
                        true => database.begin_read().await,
                    };
                    tx.unwrap();
                    std::future::pending::<()>().await;
                };
                give_up(beginning, waits).await;
                let name = format!("{waits} {is_reader}");
                add(&database, &name).await.unwrap();
                names_added.push(name);
            }
        }
        // Whatever is open ends with its connection.
        database.begin().await.unwrap().commit().await.unwrap();
        assert_eq!(names(&database).await, names_added);
        database.close().await;
    }
}

/// A server that does not even undo what was given up costs its connections, not their places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_undone_is_closed() {
    let (database, way) = over_a_way().await;
    // All that there may be; one more waits.
    let mut open = Vec::new();
    while let Ok(tx) = timeout(Duration::from_secs(1), database.begin_read()).await {
        open.push(tx.unwrap());
    }
    way.lose();
    drop(open);
    // Until those are given up there is no place for another one.
    let began = Instant::now();
    while let Err(error) = add(&database, "somebody").await {
        assert!(began.elapsed() < Duration::from_secs(60), "{error}");
    }
    assert_eq!(names(&database).await, ["somebody"]);
    database.close().await;
}

/// A server that has vanished never answers what was asked last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_waits_for_nobody_who_has_vanished() {
    let (database, way) = over_a_way().await;
    let asked = query("SELECT pg_sleep(600)").run(&database);
    let is_asked = async {
        let sql = "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = \
                   current_database() AND query LIKE 'SELECT pg_sleep%' AND state = 'active')";
        while !query(sql).value::<bool>(&database).await.unwrap() {}
        way.lose();
    };
    tokio::select! {
        answer = asked => panic!("{answer:?}"),
        () = is_asked => {}
    }
    // Nothing but a time-out of the system's would end it, after a quarter of an hour.
    timeout(Duration::from_secs(30), database.close())
        .await
        .expect("an end");
}

/// A database of PostgreSQL over a way that can lose what runs over it.
async fn over_a_way() -> (Database, Way) {
    let url = Postgres::shared().await.database().await.to_string();
    let rest = url.strip_prefix("postgres://edd@").unwrap();
    let (server, name) = rest.split_once('/').unwrap();
    let way = Way::to(server.parse().unwrap()).await;
    let url = format!("postgres://edd@{}/{name}", way.at).parse().unwrap();
    let database = Database::open(&url).await.unwrap();
    database.migrate(SCHEMA).await.unwrap();
    (database, way)
}

/// The way to a server.
struct Way {
    at: SocketAddr,
    lost: watch::Sender<u32>,
}

impl Way {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (lost, losses) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut losses = losses.clone();
                losses.mark_unchanged();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(server).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        // Open, and nothing gets through any more.
                        Ok(()) = losses.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { at, lost }
    }

    /// What runs over it vanishes; what comes after that does not.
    fn lose(&self) {
        self.lost.send_modify(|count| *count += 1);
    }
}

/// Drops it when it waits for something for the `waits`th time.
async fn give_up(future: impl Future<Output = ()>, waits: usize) {
    let mut future = std::pin::pin!(future);
    let mut left = waits;
    let last = std::future::poll_fn(|context| {
        let done = future.as_mut().poll(context);
        left -= 1;
        match left {
            0 => std::task::Poll::Ready(()),
            _ => done,
        }
    });
    // It waits for ever in the end.
    let _ = timeout(Duration::from_millis(500), last).await;
}

/// Polls it once.
async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> std::task::Poll<F::Output> {
    std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context))).await
}

#[tokio::test]
async fn what_only_reads_cannot_write() {
    let (_folder, [database, _]) = each().await;
    database.migrate(SCHEMA).await.unwrap();
    let mut reading = database.begin_read().await.unwrap();
    let written = query("INSERT INTO things (name, is_on) VALUES ('x', $1)")
        .bind(true)
        .run(&mut reading)
        .await;
    assert!(written.unwrap_err().to_string().contains("readonly"));
    drop(reading);
    database.close().await;
    assert!(matches!(
        database.begin().await.err(),
        Some(edd_store::Error::PoolClosed)
    ));
}

#[tokio::test]
async fn schema_steps_run_once_in_order_and_never_change() {
    const FIRST: Step = (
        1,
        "first",
        "CREATE TABLE t (x INTEGER); INSERT INTO t VALUES (1)",
    );
    const SECOND: Step = (2, "second", "INSERT INTO t SELECT x + 1 FROM t");
    const CHANGED: Step = (1, "first", "CREATE TABLE u (x INTEGER)");
    const fn both(steps: &'static [Step]) -> Schema {
        Schema {
            postgres: steps,
            sqlite: steps,
        }
    }
    let (_folder, databases) = each().await;
    for database in databases {
        database.migrate(both(&[FIRST])).await.unwrap();
        database.migrate(both(&[SECOND, FIRST])).await.unwrap();
        database.migrate(both(&[FIRST, SECOND])).await.unwrap();
        let rows: Vec<i32> = query("SELECT x FROM t ORDER BY x")
            .values(&database)
            .await
            .unwrap();
        assert_eq!(rows, [1, 2]);
        let older = database.migrate(both(&[FIRST])).await;
        assert!(older.is_err(), "written by a newer version");
        let changed = database.migrate(both(&[CHANGED, SECOND])).await;
        assert!(changed.is_err(), "a step that changed");
        database.close().await;
    }
}

#[tokio::test]
async fn replicas_that_start_at_once_migrate_once() {
    let url = Postgres::shared().await.database().await;
    let starts = (0..4).map(|_| {
        let url = url.clone();
        tokio::spawn(async move {
            let database = Database::open(&url).await.unwrap();
            database.migrate(SCHEMA).await.unwrap();
            database.close().await;
        })
    });
    for start in starts.collect::<Vec<_>>() {
        start.await.unwrap();
    }
}

#[tokio::test]
async fn the_file_is_its_owners_alone_and_must_be_a_database() {
    let (folder, [database, _]) = each().await;
    database.close().await;
    let path = folder.path().join("deep/er/a.db");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    std::fs::write(&path, "this is certainly not a database".repeat(100)).unwrap();
    let url: DatabaseUrl = format!("sqlite://{}", path.display()).parse().unwrap();
    let error = Database::open(&url).await.unwrap_err();
    assert!(error.to_string().contains("a.db"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_away_is_an_error_and_comes_back() {
    let mut server = Postgres::start().await;
    let url = server.database().await;
    let database = Database::open(&url).await.unwrap();
    database.migrate(SCHEMA).await.unwrap();
    add(&database, "before").await.unwrap();
    server.stop();
    assert!(database.ping().await.is_err());
    let error = Database::open(&url).await.unwrap_err();
    assert!(error.to_string().contains("postgres://edd@127.0.0.1"));
    server.resume().await;
    assert_eq!(names(&database).await, ["before"]);
    database.close().await;
}
