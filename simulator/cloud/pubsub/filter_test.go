package pubsub

import (
	"strings"
	"testing"
)

func TestFilterSelectsMessages(t *testing.T) {
	reading := map[string]string{"ce-type": "dev.robofleet.telemetry.v1", "zone": "north", "empty": "", "a key": `with "quotes"`}
	tests := []struct {
		name, filter string
		want         bool
	}{
		{"no filter", ``, true},
		{"key present", `attributes:zone`, true},
		{"key present with empty value", `attributes:empty`, true},
		{"key absent", `attributes:robot`, false},
		{"key with a hyphen", `attributes:ce-type`, true},
		{"quoted key", `attributes:"a key"`, true},
		{"equal", `attributes.zone = "north"`, true},
		{"equal without spaces", `attributes.zone="north"`, true},
		{"equal to another value", `attributes.zone = "south"`, false},
		{"value is case-sensitive", `attributes.zone = "North"`, false},
		{"absent key is not equal to the empty string", `attributes.robot = ""`, false},
		{"different", `attributes.zone != "south"`, true},
		{"not different", `attributes.zone != "north"`, false},
		{"absent key is different", `attributes.robot != "x"`, true},
		{"escaped quotes", `attributes."a key" = "with \"quotes\""`, true},
		{"unicode escape", `attributes.zone = "\u006eorth"`, true},
		{"hexadecimal escape", `attributes.zone = "\x6eorth"`, true},
		{"octal escape", `attributes.zone = "\156orth"`, true},
		{"prefix", `hasPrefix(attributes.ce-type, "dev.robofleet.")`, true},
		{"other prefix", `hasPrefix(attributes.ce-type, "com.")`, false},
		{"prefix of an absent key", `hasPrefix(attributes.robot, "")`, false},
		{"and", `attributes:zone AND attributes:empty`, true},
		{"and with one false", `attributes:zone AND attributes:robot`, false},
		{"or", `attributes:robot OR attributes:zone`, true},
		{"or with none", `attributes:robot OR attributes:boot`, false},
		{"three terms", `attributes:robot OR attributes:boot OR attributes:zone`, true},
		{"not", `NOT attributes:robot`, true},
		{"minus is not", `-attributes:zone`, false},
		{"not binds to its term", `NOT attributes:robot AND attributes:zone`, true},
		{"parentheses", `(attributes:robot OR attributes:zone) AND NOT (attributes:robot AND attributes:zone)`, true},
		{"keyword as a key", `attributes:AND`, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := parseFilter(tt.filter)
			if err != nil {
				t.Fatal(err)
			}
			if got := f == nil || f(reading); got != tt.want {
				t.Errorf("%s = %t, want %t", tt.filter, got, tt.want)
			}
		})
	}
}

func TestMalformedFilterIsRefused(t *testing.T) {
	tests := []struct{ name, filter, want string }{
		{"and with or", `attributes:a AND attributes:b OR attributes:c`, "parentheses"},
		{"lower-case operator", `attributes:a and attributes:b`, `unexpected "and"`},
		{"unclosed parenthesis", `(attributes:a`, `want ")"`},
		{"unclosed string", `attributes.a = "b`, "closing quote"},
		{"bad escape", `attributes.a = "\q"`, "bad escape"},
		{"unquoted value", `attributes.a = b`, "string in double quotes"},
		{"unknown operator", `attributes.a < "b"`, "unexpected character"},
		{"unknown function", `hasSuffix(attributes.a, "b")`, `unexpected "hasSuffix"`},
		{"data", `data = "x"`, `unexpected "data"`},
		{"trailing tokens", `attributes:a attributes:b`, `unexpected "attributes"`},
		{"nothing but a not", `NOT`, "end of filter"},
		{"blank", ` `, "end of filter"},
		{"too long", `attributes:` + strings.Repeat("a", 246), "257 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := parseFilter(tt.filter); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("parseFilter(%s) = %v, want an error with %q", tt.filter, err, tt.want)
			}
		})
	}
}

func FuzzFilter(f *testing.F) {
	for _, seed := range []string{
		``, `attributes:a`, `attributes.a = "b" AND NOT attributes.c != "d"`, `hasPrefix(attributes."k", "\u00e9") OR (-attributes:x)`, `((((`, `"`,
	} {
		f.Add(seed, "a", "b")
	}
	f.Fuzz(func(t *testing.T, text, key, value string) {
		attributes := map[string]string{key: value}
		parsed, err := parseFilter(text)
		if err != nil || parsed == nil {
			return
		}
		negated, err := parseFilter("NOT (" + text + ")")
		if err != nil {
			if len(text)+6 > maxFilterBytes {
				return
			}
			t.Fatalf("%q parses but its negation does not: %v", text, err)
		}
		if parsed(attributes) == negated(attributes) {
			t.Errorf("%q and its negation agree on %v", text, attributes)
		}
	})
}
