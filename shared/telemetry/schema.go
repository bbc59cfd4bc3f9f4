package telemetry

import _ "embed"

//go:embed schema.json
var schemaJSON string

// Schema returns the rules of a reading as a JSON Schema (draft 2020-12): the reference for whoever builds a robot, and what
// the package's tests hold Decode to. "format" asserts in it.
func Schema() []byte { return []byte(schemaJSON) }
