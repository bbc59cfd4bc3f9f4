package platform

import (
	"fmt"
	"net"
	"strconv"
	"testing"
)

func TestTakenPortIsNamed(t *testing.T) {
	services := theStages()
	first, err := choosePorts(t.Context(), 0, services)
	if err != nil {
		t.Fatal(err)
	}
	for offset, part := range map[int]string{0: "Pub/Sub", 4: "the identity provider", 10: "broker-ingress", 23: "the metrics of validate"} {
		t.Run(part, func(t *testing.T) {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(first+offset)))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			_, err = choosePorts(t.Context(), first, services)
			if want := fmt.Sprintf("port %d of %s is taken by another process; --port chooses others", first+offset, part); err == nil || err.Error() != want {
				t.Errorf("error = %v, want %s", err, want)
			}
		})
	}
}
