// Package pubsub is a Pub/Sub service for one machine: the google.pubsub.v1 gRPC API with the delivery behaviour that
// stages meet in production, for the local platform and for tests. Clients reach it like Google's emulator, with
// PUBSUB_EMULATOR_HOST set to [Server.Addr].
//
// # Arrives
//
// Publish calls. One goroutine, the sequencer, numbers the messages, writes what has gathered meanwhile as one
// transaction, answers the publishers, and hands the messages to the subscriptions whose filter they pass. A message that
// no subscription wants is dropped, as in production. Changes of topics, subscriptions and snapshots go the same way, so
// a new subscription starts exactly between two messages.
//
// # Leaves
//
// Messages, by Pull, StreamingPull or push, all from one delivery core (delivery.go). A push is a POST with the payload
// wrapped in JSON or bare with metadata and attributes as headers (push.go), signed with an OpenID Connect token when the
// subscription says so, within a window that starts at 10 outstanding pushes and grows with the endpoint (window.go).
// Statuses 102, 200, 201, 202 and 204 ack a push.
//
// # Retried
//
// A nack, a missed ack deadline, or a push that fails in any way, after the delay of the retry policy or at once without
// one, until the message is acked, dead-lettered or past its retention. A nacked push backs off its whole subscription,
// 100 ms to 60 s. With message ordering, what follows a failed message of a key comes again after it.
//
// # Dead-lettered
//
// A message whose delivery attempts are used up, to the topic of the dead-letter policy, with the attributes
// CloudPubSubDeadLetterSource…; then it is acked. While that topic is missing the message stays and is tried again.
//
// # Durability
//
// With a folder configured, everything but attempts and leases is in one bbolt file: topics, subscriptions, snapshots and
// messages. A publish is answered when its transaction is committed, to the page cache by default, so that it survives
// the kill of the process. Acks are written within 100 ms; those lost in a crash cost a redelivery. After a restart
// delivery attempts count from 1 again. Up to 256 MiB of payloads stay in memory, the rest is read from the file when it
// is delivered; of every unacked message some 300 bytes stay in memory. Without a folder everything is in memory.
//
// # Unlike production
//
//   - There is one region, no quota, no IAM and no billing; projects need not exist.
//   - Push endpoints may be plain http, and tokens come from a local issuer.
//   - An ordering key has one run of messages out at a time: the next run starts when all of it is acked.
//   - Retries have no jitter, so that tests can tell when they come.
//   - The push window is bounded (Config.MaxPushWindow), and its constants are ours: production documents the behaviour only.
//   - Unwrapped pushes tell the delivery attempt in x-goog-pubsub-delivery-attempt, which is not documented.
//   - An attribute that cannot be an HTTP header, or would pass for one of the sender's, is left out of an unwrapped push.
//   - Exactly-once delivery refuses late acks, but subscribers see them on unary calls only, not on a stream.
//   - Subscriptions never expire; export subscriptions, schemas, ingestion and message transforms are refused.
package pubsub
