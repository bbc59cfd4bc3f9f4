package platform

import (
	"context"
	"fmt"
	"net/http"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Counters adds up the counters that the stages expose to Prometheus, over the restarts of their processes. It is for the
// live view; the ledger asks the stores.
type Counters struct {
	platform *Platform
	last     map[string]float64 // by stage and series
	total    map[string]float64 // by metric
	labelled map[string]float64 // by metric and label value
}

// NewCounters returns counters that start at zero.
func (p *Platform) NewCounters() *Counters {
	return &Counters{platform: p, last: map[string]float64{}, total: map[string]float64{}, labelled: map[string]float64{}}
}

// Update asks all stages. One that does not answer, because it is being restarted, keeps what it had.
func (c *Counters) Update(ctx context.Context) {
	for stage, url := range c.platform.metrics {
		families, err := scrape(ctx, url)
		if err != nil {
			continue
		}
		for name, family := range families {
			if family.GetType() != dto.MetricType_COUNTER {
				continue
			}
			for _, m := range family.GetMetric() {
				c.add(stage, name, m)
			}
		}
	}
}

func (c *Counters) add(stage, name string, m *dto.Metric) {
	series := stage + " " + name
	value := ""
	for _, l := range m.GetLabel() {
		series += " " + l.GetName() + "=" + l.GetValue()
		value = l.GetValue()
	}
	now, before := m.GetCounter().GetValue(), c.last[series]
	if now < before {
		before = 0 // the process is a new one
	}
	c.last[series] = now
	c.total[name] += now - before
	c.labelled[name+" "+value] += now - before
}

// Total returns the sum of a metric over all labels.
func (c *Counters) Total(metric string) int64 { return int64(c.total[metric]) }

// Labelled returns the sum of a metric for one value of its last label.
func (c *Counters) Labelled(metric, value string) int64 { return int64(c.labelled[metric+" "+value]) }

// scrapeTimeout is short: it is what a stage that hangs costs each update.
const scrapeTimeout = 250 * time.Millisecond

func scrape(ctx context.Context, url string) (map[string]*dto.MetricFamily, error) {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }() // read-only: nothing to lose
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, res.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(res.Body)
}
