package main

import (
	"errors"
	"flag"
	"io"
	"strings"
	"testing"
	"time"
)

func TestFlags(t *testing.T) {
	lab := map[string]string{"LAB_NODE_IP": "10.200.0.1", "LAB_INGRESS": "10.96.0.80:80", "KO_DOCKER_REPO": "10.200.0.1:5000/ko"}
	for _, test := range []struct {
		name string
		env  map[string]string
		args []string
		want string // of the error; "" is none
	}{
		{"the cluster kit needs none", lab, nil, ""},
		{"a host for pods to reach", map[string]string{"KO_DOCKER_REPO": "registry"}, nil, "--host"},
		{"a registry for the images", map[string]string{"LAB_NODE_IP": "10.200.0.1"}, nil, "KO_DOCKER_REPO"},
		{"an end", lab, []string{"--duration", "0s"}, "--duration"},
		{"a share", lab, []string{"--bad", "some"}, "--bad"},
		{"robots", lab, []string{"--robots", "0"}, "robots"},
		{"nothing else", lab, []string{"now"}, `"now"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg, err := parse(test.args, io.Discard, func(name string) string { return test.env[name] })
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			if err != nil {
				return
			}
			if cfg.Host != "10.200.0.1" || cfg.Ingress != "10.96.0.80:80" || cfg.Fleet.Robots != 200 || cfg.Fleet.Duration != 20*time.Second {
				t.Errorf("got %+v", cfg)
			}
		})
	}
}

func TestHelpIsNoFailure(t *testing.T) {
	var out strings.Builder
	_, err := parse([]string{"--help"}, &out, func(string) string { return "" })
	if !errors.Is(err, flag.ErrHelp) || !strings.Contains(out.String(), "-robots") {
		t.Errorf("got %v and %q", err, out.String())
	}
}
