package stages

import (
	"os"
	"testing"
)

func TestPeakRSSOfThisProcess(t *testing.T) {
	if got := peakRSS(os.Getpid()); got == 0 {
		t.Error("got 0, want the peak of a running process")
	}
}

func TestParsePeakRSS(t *testing.T) {
	tests := []struct {
		name, status string
		want         uint64
	}{
		{"a process", "Name:\tvalidate\nVmHWM:\t   12345 kB\nVmRSS:\t   12000 kB\n", 12345 << 10},
		{"a kernel thread has none", "Name:\tkthreadd\n", 0},
		{"cut off", "VmHWM:", 0},
		{"negative", "VmHWM:\t-1 kB\n", 0},
		{"more than fits", "VmHWM:\t99999999999999999999 kB\n", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := parsePeakRSS([]byte(test.status)); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

func FuzzParsePeakRSS(f *testing.F) {
	f.Add([]byte("Name:\tvalidate\nVmHWM:\t   12345 kB\nVmRSS:\t   12000 kB\n"))
	f.Add([]byte("VmHWM:\t99999999999999999999 kB\n"))
	f.Fuzz(func(t *testing.T, status []byte) {
		if got := parsePeakRSS(status); got%1024 != 0 {
			t.Errorf("got %d, want whole kilobytes", got)
		}
	})
}
