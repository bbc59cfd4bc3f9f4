package robots

// What a robot's battery does, in percent of a 1.2 kWh pack.
const (
	drainPerMetre  = 3.3 / 1000   // 40 Wh/km
	drainPerSecond = 2.5 / 3600   // 30 W of electronics
	chargePerSec   = 100.0 / 3600 // 1 C: full in an hour
	batteryLow     = 60.0         // a robot that comes home with less goes to charge; the longest delivery takes 30
	batteryFull    = 95.0         // a robot at this level leaves the charger
)

// battery is the charge of a robot in percent, 0 to 100.
type battery struct{ percent float64 }

// drain takes what a distance in metres and a time in seconds cost.
func (b *battery) drain(metres, seconds float64) {
	b.percent = max(0, b.percent-metres*drainPerMetre-seconds*drainPerSecond)
}

// charge adds what a time in seconds on the charger gives.
func (b *battery) charge(seconds float64) {
	b.percent = min(100, b.percent+seconds*chargePerSec)
}
