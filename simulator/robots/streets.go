package robots

import (
	"container/heap"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
)

// metresPerDegree is the length of one degree of latitude on the WGS 84 mean sphere (radius 6,371,008.8 m). Over a town a
// few kilometres wide, treating the earth as flat around the centre errs by centimetres.
const metresPerDegree = 6371008.8 * math.Pi / 180

// LatLon is a place in WGS 84 degrees.
type LatLon struct{ LatDeg, LonDeg float64 }

// The kinds of street. The kind sets the speed limit.
const (
	kindStreet    = "street"
	kindAvenue    = "avenue"
	kindBoulevard = "boulevard" // a diagonal
	kindBridge    = "bridge"
)

// speedLimits are in m/s: a walking pace on pavements, slower on bridges where they are narrow, up to the 12 km/h of a
// slow bicycle where there is a lane.
var speedLimits = map[string]float64{kindStreet: 2.0, kindAvenue: 3.0, kindBoulevard: 3.4, kindBridge: 1.6}

// The town's grid before it is bent out of shape.
const (
	gridSize    = 20    // nodes along a side
	gridSpacing = 120.0 // metres
)

// noEdge says in the table of next edges that the destination has been reached.
const noEdge = math.MaxUint16

// Streets is a town: crossings joined by straight streets, with a river, bridges over it and the depots where robots
// live. It does not change once made, so robots share it without locks.
type Streets struct {
	centre LatLon
	cosLat float64
	nodes  []point
	edges  []edge     // directed: each street is two edges
	next   [][]uint16 // next[to][at]: the first edge of the shortest way (in time) from at to to
	depots []uint16
	river  []point
}

// point is a place in metres east (x) and north (y) of the centre.
type point struct{ x, y float64 }

type edge struct {
	from, to uint16
	kind     string
	length   float64 // metres
	limit    float64 // m/s
	bearing  float64 // degrees clockwise from north
	dir      point   // unit vector
}

// NewStreets makes the town of a seed around a centre. The same seed makes the same town.
func NewStreets(centre LatLon, seed uint64) *Streets {
	s := &Streets{centre: centre, cosLat: math.Cos(centre.LatDeg * math.Pi / 180)}
	rng := rand.New(rand.NewPCG(seed, streamStreets))
	bank := s.layNodes(rng)
	s.layStreets(rng, bank)
	s.placeDepots()
	s.findWays()
	return s
}

// layNodes places the crossings and the river. It returns, for each column, the first row north of the river.
func (s *Streets) layNodes(rng *rand.Rand) (bank [gridSize]int) {
	phase := rng.Float64() * 2 * math.Pi
	for row := range gridSize {
		for col := range gridSize {
			// A slow bend keeps long streets continuous, the jitter makes each block its own.
			bend := 40 * math.Sin(float64(row+col)/5+phase)
			s.nodes = append(s.nodes, point{
				x: (float64(col)-(gridSize-1)/2.0)*gridSpacing + bend + rng.Float64()*40 - 20,
				y: (float64(row)-(gridSize-1)/2.0)*gridSpacing + bend/2 + rng.Float64()*40 - 20,
			})
		}
	}
	for col := range gridSize {
		bank[col] = gridSize/2 + int(math.Round(2*math.Sin(float64(col)/4+phase)))
		south, north := s.nodes[nodeAt(col, bank[col]-1)], s.nodes[nodeAt(col, bank[col])]
		s.river = append(s.river, point{(south.x + north.x) / 2, (south.y + north.y) / 2})
	}
	return bank
}

func nodeAt(col, row int) int { return row*gridSize + col }

// layStreets joins crossings. Every candidate that connects two parts of the town is kept, of the others some are left
// out, so that the town is connected and yet no plain grid.
func (s *Streets) layStreets(rng *rand.Rand, bank [gridSize]int) {
	type candidate struct {
		a, b int
		kind string
	}
	var main, minor []candidate
	add := func(c1, r1, c2, r2 int, kind string) {
		if c2 < 0 || c2 >= gridSize || r2 >= gridSize {
			return
		}
		if crosses := (r1 >= bank[c1]) != (r2 >= bank[c2]); crosses {
			if c1 != c2 || c1%4 != 2 {
				return // water
			}
			kind = kindBridge
		}
		c := candidate{nodeAt(c1, r1), nodeAt(c2, r2), kind}
		if kind == kindStreet {
			minor = append(minor, c)
		} else {
			main = append(main, c)
		}
	}
	class := func(line int) string {
		if line%5 == 2 {
			return kindAvenue
		}
		return kindStreet
	}
	for row := range gridSize {
		for col := range gridSize {
			add(col, row, col+1, row, class(row))
			add(col, row, col, row+1, class(col))
			if row == col || row+col == gridSize+3 {
				step := 1
				if row != col {
					step = -1
				}
				add(col, row, col+step, row+1, kindBoulevard)
			}
		}
	}
	rng.Shuffle(len(minor), func(i, j int) { minor[i], minor[j] = minor[j], minor[i] })

	part := make([]int, len(s.nodes)) // union-find
	for i := range part {
		part[i] = i
	}
	find := func(i int) int {
		for part[i] != i {
			part[i] = part[part[i]]
			i = part[i]
		}
		return i
	}
	for _, c := range append(main, minor...) {
		a, b := find(c.a), find(c.b)
		if a == b && c.kind == kindStreet && rng.Float64() < 0.25 {
			continue
		}
		part[a] = b
		s.edges = append(s.edges, s.newEdge(c.a, c.b, c.kind), s.newEdge(c.b, c.a, c.kind))
	}
}

func (s *Streets) newEdge(from, to int, kind string) edge {
	a, b := s.nodes[from], s.nodes[to]
	dx, dy := b.x-a.x, b.y-a.y
	length := math.Hypot(dx, dy)
	return edge{
		from: uint16(from), to: uint16(to), kind: kind, length: length, limit: speedLimits[kind],
		bearing: normalHeading(math.Atan2(dx, dy) * 180 / math.Pi),
		dir:     point{dx / length, dy / length},
	}
}

// placeDepots puts one depot in each quarter and one in the middle, so that no trip home is long.
func (s *Streets) placeDepots() {
	const near, mid, far = gridSize / 5, gridSize / 2, gridSize - 1 - gridSize/5
	for _, at := range [][2]int{{near, near}, {far, near}, {mid, mid}, {near, far}, {far, far}} {
		s.depots = append(s.depots, uint16(nodeAt(at[0], at[1])))
	}
}

// findWays fills the table of next edges with one Dijkstra per destination, backwards over the edges. Every street runs
// both ways, so the edges out of a node, reversed, are the edges into it.
func (s *Streets) findWays() {
	out := make([][]uint16, len(s.nodes))
	for i, e := range s.edges {
		out[e.from] = append(out[e.from], uint16(i))
	}
	s.next = make([][]uint16, len(s.nodes))
	best := make([]float64, len(s.nodes))
	for to := range s.nodes {
		next := make([]uint16, len(s.nodes))
		for i := range best {
			best[i], next[i] = math.Inf(1), noEdge
		}
		best[to] = 0
		queue := &frontier{{node: uint16(to)}}
		for queue.Len() > 0 {
			at := heap.Pop(queue).(waypoint)
			if at.cost > best[at.node] {
				continue
			}
			for _, i := range out[at.node] {
				e := &s.edges[i]
				if cost := at.cost + e.length/e.limit; cost < best[e.to] {
					best[e.to] = cost
					next[e.to] = i ^ 1 // the same street the other way: edges come in pairs
					heap.Push(queue, waypoint{e.to, cost})
				}
			}
		}
		s.next[to] = next
	}
}

// waypoint is a node and the seconds from it to the destination.
type waypoint struct {
	node uint16
	cost float64
}

// frontier is the priority queue of a Dijkstra search.
type frontier []waypoint

func (f frontier) Len() int           { return len(f) }
func (f frontier) Less(i, j int) bool { return f[i].cost < f[j].cost }
func (f frontier) Swap(i, j int)      { f[i], f[j] = f[j], f[i] }
func (f *frontier) Push(x any)        { *f = append(*f, x.(waypoint)) }
func (f *frontier) Pop() any {
	last := len(*f) - 1
	w := (*f)[last]
	*f = (*f)[:last]
	return w
}

// nearestDepot is the depot with the shortest straight line from a node.
func (s *Streets) nearestDepot(node uint16) uint16 {
	at, nearest, best := s.nodes[node], s.depots[0], math.Inf(1)
	for _, d := range s.depots {
		if dist := math.Hypot(s.nodes[d].x-at.x, s.nodes[d].y-at.y); dist < best {
			nearest, best = d, dist
		}
	}
	return nearest
}

// latLon converts metres from the centre to degrees.
func (s *Streets) latLon(p point) LatLon {
	return LatLon{
		LatDeg: s.centre.LatDeg + p.y/metresPerDegree,
		LonDeg: s.centre.LonDeg + p.x/(metresPerDegree*s.cosLat),
	}
}

// GeoJSON draws the town as a FeatureCollection (RFC 7946): a LineString per street with the properties "kind"
// ("street", "avenue", "boulevard", "bridge") and "limit_mps", one LineString of kind "river", and a Point of kind
// "depot" per depot.
func (s *Streets) GeoJSON() ([]byte, error) {
	type geometry struct {
		Type        string `json:"type"`
		Coordinates any    `json:"coordinates"`
	}
	type feature struct {
		Type       string         `json:"type"`
		Properties map[string]any `json:"properties"`
		Geometry   geometry       `json:"geometry"`
	}
	coordinates := func(p point) [2]float64 {
		at := s.latLon(p)
		return [2]float64{round(at.LonDeg, 1e6), round(at.LatDeg, 1e6)} // longitude first, says RFC 7946
	}
	line := func(points ...point) geometry {
		path := make([][2]float64, len(points))
		for i, p := range points {
			path[i] = coordinates(p)
		}
		return geometry{"LineString", path}
	}

	features := []feature{{"Feature", map[string]any{"kind": "river"}, line(s.river...)}}
	for i := 0; i < len(s.edges); i += 2 {
		e := &s.edges[i]
		features = append(features, feature{
			"Feature", map[string]any{"kind": e.kind, "limit_mps": e.limit}, line(s.nodes[e.from], s.nodes[e.to]),
		})
	}
	for _, d := range s.depots {
		features = append(features, feature{
			"Feature", map[string]any{"kind": "depot"}, geometry{"Point", coordinates(s.nodes[d])},
		})
	}
	out, err := json.Marshal(struct {
		Type     string    `json:"type"`
		Features []feature `json:"features"`
	}{"FeatureCollection", features})
	if err != nil {
		return nil, fmt.Errorf("encode streets as GeoJSON: %w", err)
	}
	return out, nil
}

// round keeps scale-ths of v: round(v, 1e6) keeps six decimals.
func round(v, scale float64) float64 { return math.Round(v*scale) / scale }

// normalHeading brings an angle to 0 ≤ heading < 360.
func normalHeading(deg float64) float64 {
	if deg = math.Mod(deg, 360); deg < 0 {
		deg += 360
	}
	return deg
}
