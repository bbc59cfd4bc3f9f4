// Package robots simulates a fleet of delivery robots that publish telemetry to Pub/Sub.
//
// The robots drive along the streets of a made-up town, deliver, return, charge and break down. Their clocks are wrong, their
// connections break and their software reboots, as those of real ones. What they publish follows from the seed alone: with the
// same seed, run id and start time each robot publishes the same messages in the same order.
//
// # Delivery
//
// Every reading that a robot measures is published: what is measured offline is kept and sent later, what Pub/Sub does not
// confirm is sent again until the run's grace period ends. The Manifest says what was confirmed, what was injected to be
// rejected or to be a duplicate, and of what nobody knows. Retries can deliver a message twice; nothing is ever left out.
package robots

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config says what a fleet is and does. Start from DefaultConfig.
type Config struct {
	// Robots is how many there are, 1 to 999,999.
	Robots int
	// Rate is readings per robot per second, the mean over a period of the Profile. At most 100.
	Rate float64
	// Profile is the shape of the traffic.
	Profile Profile
	// Duration is how long the robots measure; 0: until the context of Run ends.
	Duration time.Duration
	// Seed decides everything that is random.
	Seed uint64
	// RunID begins the boot ids ("<run id>-<boot number>"), so no two runs that share storage may have the same: up to 40
	// letters, digits, '.', '_' or '-', the first a letter or digit.
	RunID string
	// Start is the time at which simulated time starts; the zero value: when Run is called.
	Start time.Time
	// Centre is where the town is.
	Centre LatLon

	// BadRatio is how many messages to inject per good reading, 0 to 1 (see BadKind).
	BadRatio float64
	// PlainRatio is the share of robots (of gateways, if there are any) that publish bare JSON without the attributes of a
	// CloudEvent, 0 to 1.
	PlainRatio float64
	// Gateway is how many readings an edge gateway puts into one message, as a JSON array, 1 to 1000. With 1 there are no
	// gateways and each robot publishes its own readings, one per message. Otherwise as many robots share a gateway.
	Gateway int
	// OfflineEvery is the mean time between two losses of connection of a robot; 0: never.
	OfflineEvery time.Duration
	// RebootEvery is the mean time between two reboots of a robot; 0: never.
	RebootEvery time.Duration

	// Grace is how long Run waits, after the robots stopped, for messages that are not confirmed.
	Grace time.Duration
	// OnPublish, if not nil, is called just before a good reading of a Sampled robot is published for the first time. It is
	// called from several goroutines and holds up the robots.
	OnPublish func(id string, at time.Time)
}

// DefaultConfig is a fleet of 1,000 robots at 5 readings per second each. RunID is left to be set.
func DefaultConfig() Config {
	return Config{
		Robots:       1000,
		Rate:         5,
		Seed:         1,
		Centre:       LatLon{LatDeg: 52.0116, LonDeg: 4.3571},
		Gateway:      1,
		OfflineEvery: 10 * time.Minute,
		RebootEvery:  10 * time.Minute,
		Grace:        30 * time.Second,
	}
}

// runIDPattern keeps "<run id>-<boot number>" within what the schema of a reading allows for a boot_id.
var runIDPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$`)

func (c *Config) validate() error {
	isRatio := func(r float64) bool { return r >= 0 && r <= 1 }
	for _, rule := range []struct {
		ok   bool
		want string
		got  any
	}{
		{c.Robots >= 1 && c.Robots <= 999_999, "robots must be 1 to 999999", c.Robots},
		{c.Rate > 0 && c.Rate <= 100, "rate must be above 0 and at most 100 readings per robot per second", c.Rate},
		{c.Duration >= 0, "duration must not be negative", c.Duration},
		{runIDPattern.MatchString(c.RunID), "run id must be 1 to 40 letters, digits, '.', '_' or '-', the first a letter or digit", c.RunID},
		{math.Abs(c.Centre.LatDeg) <= 85 && math.Abs(c.Centre.LonDeg) <= 179, "centre must be within ±85° latitude and ±179° longitude", c.Centre},
		{isRatio(c.BadRatio), "bad ratio must be 0 to 1", c.BadRatio},
		{isRatio(c.PlainRatio), "plain ratio must be 0 to 1", c.PlainRatio},
		{c.Gateway >= 1 && c.Gateway <= 1000, "gateway must be 1 to 1000 readings per message", c.Gateway},
		{c.OfflineEvery >= 0, "mean time between offline spells must not be negative", c.OfflineEvery},
		{c.RebootEvery >= 0, "mean time between reboots must not be negative", c.RebootEvery},
		{c.Grace >= 0, "grace must not be negative", c.Grace},
	} {
		if !rule.ok {
			return fmt.Errorf("%s, not %v", rule.want, rule.got)
		}
	}
	return nil
}

// Fleet is a number of robots, ready to run once.
type Fleet struct {
	cfg      Config
	streets  *Streets
	shards   []*shard
	manifest *Manifest
	counters *counters

	start   time.Time // of simulated time
	began   atomic.Pointer[time.Time]
	stopped atomic.Bool
}

// New makes a fleet. An error says which part of the Config is wrong.
func New(cfg Config) (*Fleet, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	f := &Fleet{
		cfg:      cfg,
		streets:  NewStreets(cfg.Centre, cfg.Seed),
		manifest: newManifest(cfg.RunID, cfg.Robots),
		counters: newCounters(),
	}
	for i := range shards {
		f.shards = append(f.shards, &shard{fleet: f, offset: (float64(i) + 0.5) / shards})
	}
	for i := range cfg.Robots {
		r := newRobot(i+1, &cfg, f.streets)
		f.counters.status[r.status].Add(1)
		// Robots of one gateway measure one after the other, so that its messages fill quickly.
		group := i / cfg.Gateway
		s := f.shards[group%shards]
		s.robots = append(s.robots, r)
		r.plain = among(group, cfg.PlainRatio)
		if cfg.Gateway == 1 {
			continue
		}
		if i%cfg.Gateway == 0 {
			s.gateways = append(s.gateways, &gateway{
				id: fmt.Sprintf("G-%06d", group+1), runID: cfg.RunID, size: cfg.Gateway, plain: r.plain,
			})
		}
		r.gateway = s.gateways[len(s.gateways)-1]
	}
	return f, nil
}

// among spreads a ratio evenly: it is true for that share of any run of consecutive n.
func among(n int, ratio float64) bool {
	return math.Floor(float64(n+1)*ratio) > math.Floor(float64(n)*ratio)
}

// Streets is the town in which the robots drive.
func (f *Fleet) Streets() *Streets { return f.streets }

// Manifest is what the fleet published. It is of use during and after Run.
func (f *Fleet) Manifest() *Manifest { return f.manifest }

// Run lets the robots measure and publish until ctx ends or Config.Duration is over, then brings offline robots back, and
// returns when the result of every message is known or Config.Grace is over. That ctx ended is no error. Errors are: a
// publisher that refuses messages for good (ErrRefused), after which the robots stop at once; and messages that were still
// not confirmed in the end, which Manifest.Unconfirmed names. Run works once per Fleet.
func (f *Fleet) Run(ctx context.Context, p Publisher) error {
	now := time.Now()
	if !f.began.CompareAndSwap(nil, &now) {
		return errors.New("fleet: run twice")
	}
	f.start = f.cfg.Start
	if f.start.IsZero() {
		f.start = now
	}

	running, stop := context.WithCancel(ctx)
	defer stop()
	// Publishing outlives the robots by the grace period.
	publishing, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	context.AfterFunc(running, func() {
		timer := time.AfterFunc(f.cfg.Grace, func() { giveUp(fmt.Errorf("not confirmed within the grace of %s", f.cfg.Grace)) })
		context.AfterFunc(publishing, func() { timer.Stop() })
	})

	var (
		once  sync.Once
		first error // the first reason for which a message was given up
	)
	report := func(m *Message, err error) {
		if err == nil {
			f.manifest.confirm(m)
			f.counters.confirmed.Add(1)
			return
		}
		f.counters.unconfirmed.Add(1)
		once.Do(func() { first = err })
		if errors.Is(err, ErrRefused) {
			stop()
			giveUp(err)
		}
	}
	send := func(m *Message) {
		f.handOver(m)
		p.Publish(publishing, m, report)
	}

	var group errgroup.Group
	for _, s := range f.shards {
		group.Go(func() error {
			err := s.run(running, send)
			if err == nil {
				err = s.finish(send)
			}
			if err != nil {
				stop()
			}
			return err
		})
	}
	err := group.Wait()
	f.stopped.Store(true)
	stop()
	p.Flush()
	switch n := f.counters.unconfirmed.Load(); {
	case err != nil:
		return fmt.Errorf("fleet: %w", err)
	case n > 0:
		return fmt.Errorf("fleet: %d messages not confirmed, the first because: %w", n, first)
	}
	return nil
}

// handOver notes a message that goes to the publisher.
func (f *Fleet) handOver(m *Message) {
	f.manifest.handOver(m)
	f.counters.published.Add(1)
	if m.duplicate || f.cfg.OnPublish == nil {
		return
	}
	for _, r := range m.readings {
		if r.boot.sampled {
			f.cfg.OnPublish(r.id(), time.Now())
		}
	}
}

// noteSlip records that a shard's schedule was delayed. Shards slip each for itself; the longest counts.
func (f *Fleet) noteSlip(total time.Duration) {
	for {
		most := f.counters.slipped.Load()
		if int64(total) <= most || f.counters.slipped.CompareAndSwap(most, int64(total)) {
			return
		}
	}
}
