package controller

import (
	"net/url"
	"strings"
	"testing"
	"time"

	duckv1 "knative.dev/pkg/apis/duck/v1"
)

const addressables = `
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: ns}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: public, namespace: ns}
status: {url: 'https://public.ns.example.com', address: {url: 'http://public.ns.svc.cluster.local'}}
---
apiVersion: messaging.knative.dev/v1
kind: Channel
metadata: {name: channel, namespace: ns}
status:
  address: {url: 'http://channel-kn.ns.svc.cluster.local'}
  addresses: [{name: http, url: 'http://channel-kn.ns.svc.cluster.local'}, {name: https, url: 'https://channel.example.com'}]
---
apiVersion: messaging.knative.dev/v1
kind: Channel
metadata: {name: unready, namespace: ns}
`

func TestAddressOf(t *testing.T) {
	https, none := "https", "none"
	tests := []struct {
		name         string
		pushEndpoint string
		ref          duckv1.KReference
		want         string
		wantErr      string
	}{
		{name: "a Kubernetes Service", ref: duckv1.KReference{APIVersion: "v1", Kind: "Service", Name: "plain"}, want: "http://plain.ns.svc.cluster.local"},
		{name: "a Knative Service is public", ref: duckv1.KReference{APIVersion: "serving.knative.dev/v1", Kind: "Service", Name: "public"}, want: "https://public.ns.example.com"},
		{
			name: "a Knative Service by the operator's way in", pushEndpoint: "https://{name}.{namespace}.in.example.com",
			ref:  duckv1.KReference{APIVersion: "serving.knative.dev/v1", Kind: "Service", Name: "public"},
			want: "http://public.ns.svc.cluster.local",
		},
		{name: "an addressable", ref: duckv1.KReference{APIVersion: "messaging.knative.dev/v1", Kind: "Channel", Name: "channel"}, want: "http://channel-kn.ns.svc.cluster.local"},
		{
			name: "an address by its name", ref: duckv1.KReference{APIVersion: "messaging.knative.dev/v1", Kind: "Channel", Name: "channel", Address: &https},
			want: "https://channel.example.com",
		},
		{
			name: "no address by that name", ref: duckv1.KReference{APIVersion: "messaging.knative.dev/v1", Kind: "Channel", Name: "channel", Address: &none},
			wantErr: "has no address",
		},
		{name: "not ready", ref: duckv1.KReference{APIVersion: "messaging.knative.dev/v1", Kind: "Channel", Name: "unready"}, wantErr: "not ready yet"},
		{name: "missing", ref: duckv1.KReference{APIVersion: "v1", Kind: "Service", Name: "nobody"}, wantErr: "does not exist: create it"},
		{name: "no version", ref: duckv1.KReference{Kind: "Service", Name: "plain"}, wantErr: "ref.apiVersion"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t, addressables)
			c.Settings.PushEndpoint = test.pushEndpoint
			test.ref.Namespace = "ns"
			got, err := c.addressOf(t.Context(), test.ref)
			if test.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErr) {
					t.Errorf("error %v, want one about %q", err, test.wantErr)
				}
				return
			}
			if err != nil || got != test.want {
				t.Errorf("address %q, error %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestReach(t *testing.T) {
	tests := []struct {
		name     string
		settings Settings
		address  string
		want     string // "": refused
	}{
		{"a public address stands for itself", Settings{PushEndpoint: "https://{name}.{namespace}.in"}, "https://example.com/a?b=c", "https://example.com/a?b=c"},
		{"an address of the cluster", Settings{PushEndpoint: "https://{name}.{namespace}.in"}, "http://a.b.svc.cluster.local", "https://a.b.in"},
		{"its path and query", Settings{PushEndpoint: "https://{name}.{namespace}.in"}, "http://a.b.svc:8080/c/d%2Fe?f=g", "https://a.b.in/c/d%2Fe?f=g"},
		{"a pattern with a path", Settings{PushEndpoint: "https://in/{namespace}/{name}"}, "http://a.b.svc/c", "https://in/b/a/c"},
		{"no way in", Settings{}, "http://a.b.svc.cluster.local", ""},
		{"a local Pub/Sub", Settings{AllowHTTP: true}, "http://a.b.svc.cluster.local", "http://a.b.svc.cluster.local"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			address, err := url.Parse(test.address)
			if err != nil {
				t.Fatal(err)
			}
			got, err := test.settings.reach(address)
			if test.want == "" {
				if err == nil || !strings.Contains(err.Error(), "PUSH_ENDPOINT") {
					t.Errorf("error %v, want one that says what to set", err)
				}
				return
			}
			if err != nil || got.String() != test.want {
				t.Errorf("%v, error %v, want %s", got, err, test.want)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	valid := Settings{Project: "p", Owner: "prod-eu", Resync: time.Minute, Parallel: 1, CallTimeout: time.Second, PushEndpoint: "https://{name}.{namespace}.example.com"}
	if err := valid.Validate(); err != nil {
		t.Errorf("valid settings: %v", err)
	}
	tests := []struct {
		name   string
		change func(*Settings)
		want   string
	}{
		{"an owner that is no label", func(s *Settings) { s.Owner = "Prod EU" }, "OWNER"},
		{"no project", func(s *Settings) { s.Project = "" }, "PUBSUB_PROJECT_ID"},
		{"no owner", func(s *Settings) { s.Owner = "" }, "OWNER"},
		{"a way in without TLS", func(s *Settings) { s.PushEndpoint = "http://{name}.{namespace}.example.com" }, "PUSH_ENDPOINT"},
		{"one way in for all", func(s *Settings) { s.PushEndpoint = "https://example.com" }, "all services would be one"},
		{"no host", func(s *Settings) { s.PushEndpoint = "{name}.{namespace}" }, "PUSH_ENDPOINT"},
		{"no pause", func(s *Settings) { s.Resync = 0 }, "RESYNC"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			settings := valid
			test.change(&settings)
			if err := settings.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one about %q", err, test.want)
			}
		})
	}
}
