package robots

import (
	"math"
	"testing"
	"time"
)

func TestParseProfile(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"steady", "steady"},
		{"burst", "burst:30s"},
		{"day", "day:10m0s"},
		{"day:90s", "day:1m30s"},
		{"burst:1m", "burst:1m0s"},
		{"", ""},
		{"night", ""},
		{"steady:1m", ""},
		{"day:", ""},
		{"day:10ms", ""},
		{"day:-1m", ""},
		{"burst:9000h", ""},
	} {
		t.Run(tc.in, func(t *testing.T) {
			p, err := ParseProfile(tc.in)
			if (err != nil) != (tc.want == "") {
				t.Fatalf("error %v", err)
			}
			if err == nil && p.String() != tc.want {
				t.Errorf("got %q, want %q", p, tc.want)
			}
		})
	}
}

func TestProfilesKeepTheRateOverAPeriod(t *testing.T) {
	for _, name := range []string{"steady", "burst:30s", "day:2m"} {
		t.Run(name, func(t *testing.T) {
			p := mustProfile(t, name)
			if got := p.seconds(10 * time.Minute); math.Abs(got-600) > 1e-6 {
				t.Errorf("ten minutes count for %.6f s, want 600", got)
			}
			const step = time.Millisecond
			sum := 0.0
			for at := time.Duration(0); at < 2*time.Minute; at += step {
				if f := p.Factor(at); f < 0 {
					t.Fatalf("factor %v at %v", f, at)
				}
				sum += p.Factor(at+step/2) * step.Seconds()
				if got := p.seconds(at + step); math.Abs(got-sum) > 0.01 {
					t.Fatalf("at %v: integral %.4f, sum of factors %.4f", at, got, sum)
				}
			}
		})
	}
}

func TestBurstIsSilenceThenFlood(t *testing.T) {
	p := mustProfile(t, "burst:10s")
	for at, want := range map[time.Duration]float64{0: 0, 7999 * time.Millisecond: 0, 8 * time.Second: 5, 9999 * time.Millisecond: 5, 10 * time.Second: 0} {
		if got := p.Factor(at); math.Abs(got-want) > 1e-9 {
			t.Errorf("factor at %v: %v, want %v", at, got, want)
		}
	}
}

func TestDayIsQuietAtMidnightWithTwoPeaks(t *testing.T) {
	p := mustProfile(t, "day:24m")
	hour := func(h int) float64 { return p.Factor(time.Duration(h) * time.Minute) }
	if hour(0) > 0.2 {
		t.Errorf("midnight: %v", hour(0))
	}
	if !(hour(8) > hour(12) && hour(16) > hour(12) && hour(12) > hour(4)) {
		t.Errorf("4 h %.2f, 8 h %.2f, 12 h %.2f, 16 h %.2f", hour(4), hour(8), hour(12), hour(16))
	}
}

func mustProfile(t *testing.T, s string) Profile {
	t.Helper()
	p, err := ParseProfile(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestParseRatio(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want float64
		ok   bool
	}{
		{"0.1%", 0.001, true},
		{"0.001", 0.001, true},
		{"0", 0, true},
		{"100%", 1, true},
		{" 5 % ", 0.05, true},
		{"1", 1, true},
		{"101%", 0, false},
		{"-1%", 0, false},
		{"NaN", 0, false},
		{"Inf%", 0, false},
		{"%", 0, false},
		{"", 0, false},
		{"1%%", 0, false},
	} {
		t.Run(tc.in, func(t *testing.T) {
			got, err := ParseRatio(tc.in)
			if (err == nil) != tc.ok || math.Abs(got-tc.want) > 1e-15 {
				t.Errorf("got %v, %v; want %v, ok %v", got, err, tc.want, tc.ok)
			}
		})
	}
}

func FuzzParseProfile(f *testing.F) {
	for _, s := range []string{"steady", "burst", "day:5m", "day:", "burst:1h:2h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseProfile(s)
		if err != nil {
			return
		}
		again, err := ParseProfile(p.String())
		if err != nil || again != p {
			t.Errorf("%q is printed as %q, which is read as %v, %v", s, p, again, err)
		}
	})
}

func FuzzParseRatio(f *testing.F) {
	for _, s := range []string{"0.1%", "0.5", "1e-3", "NaN", "0x1p-2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseRatio(s); err == nil && !(r >= 0 && r <= 1) {
			t.Errorf("ParseRatio(%q) = %v", s, r)
		}
	})
}
