package robots

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
)

var town = NewStreets(DefaultConfig().Centre, 1)

func TestEveryCrossingIsReachableFromEveryOther(t *testing.T) {
	for seed := range uint64(8) {
		s := NewStreets(LatLon{48, 11}, seed)
		for to := range s.nodes {
			for from := range s.nodes {
				if from != to && s.next[to][from] == noEdge {
					t.Fatalf("seed %d: no way from %d to %d", seed, from, to)
				}
			}
		}
	}
}

func TestWaysAreShortest(t *testing.T) {
	// The next edge is the first of a shortest way when every edge relaxed gives nothing shorter (Bellman's equation).
	cost := func(from, to int) (seconds float64) {
		for at := uint16(from); town.next[to][at] != noEdge; {
			e := town.edges[town.next[to][at]]
			if e.from != at {
				t.Fatalf("edge at %d starts at %d", at, e.from)
			}
			seconds += e.length / e.limit
			at = e.to
		}
		return seconds
	}
	for to := 0; to < len(town.nodes); to += 37 {
		for _, e := range town.edges {
			direct := cost(int(e.from), to)
			if via := e.length/e.limit + cost(int(e.to), to); via < direct-1e-6 {
				t.Fatalf("from %d to %d: %.3f s, but %.3f s over %d", e.from, to, direct, via, e.to)
			}
		}
	}
}

func TestRiverIsCrossedByBridgesOnly(t *testing.T) {
	bridges := 0
	for _, e := range town.edges {
		if e.kind == kindBridge {
			bridges++
		}
	}
	if bridges == 0 {
		t.Fatal("no bridge")
	}
	for _, e := range town.edges {
		if e.kind == kindBridge {
			continue
		}
		a, b := town.nodes[e.from], town.nodes[e.to]
		for i := 1; i < len(town.river); i++ {
			if crosses(a, b, town.river[i-1], town.river[i]) {
				t.Errorf("%s from %v to %v goes through the water", e.kind, a, b)
			}
		}
	}
}

// crosses says whether the segments a–b and c–d cross.
func crosses(a, b, c, d point) bool {
	side := func(p, q, r point) bool { return (q.x-p.x)*(r.y-p.y)-(q.y-p.y)*(r.x-p.x) > 0 }
	return side(a, b, c) != side(a, b, d) && side(c, d, a) != side(c, d, b)
}

func TestSameSeedMakesTheSameTown(t *testing.T) {
	same, other := NewStreets(DefaultConfig().Centre, 1), NewStreets(DefaultConfig().Centre, 2)
	if !reflect.DeepEqual(same, town) {
		t.Error("seed 1 made two towns")
	}
	if reflect.DeepEqual(other.nodes, town.nodes) {
		t.Error("seeds 1 and 2 made the same town")
	}
}

func TestGeoJSONHoldsStreetsRiverAndDepots(t *testing.T) {
	data, err := town.GeoJSON()
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Type     string
		Features []struct {
			Properties struct{ Kind string }
			Geometry   struct {
				Type        string
				Coordinates json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, f := range got.Features {
		kinds[f.Properties.Kind]++
		if f.Geometry.Type != "LineString" {
			continue
		}
		var line [][2]float64
		if err := json.Unmarshal(f.Geometry.Coordinates, &line); err != nil {
			t.Fatal(err)
		}
		for _, c := range line {
			if math.Abs(c[0]-town.centre.LonDeg) > 0.05 || math.Abs(c[1]-town.centre.LatDeg) > 0.05 {
				t.Fatalf("%v is not within the town (longitude comes first)", c)
			}
		}
	}
	for _, kind := range []string{"river", "depot", kindStreet, kindAvenue, kindBoulevard, kindBridge} {
		if kinds[kind] == 0 {
			t.Errorf("no %s among %v", kind, kinds)
		}
	}
}
