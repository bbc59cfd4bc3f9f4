package telemetry_test

import (
	"fmt"

	"github.com/robofleet/robofleet/shared/telemetry"
)

func ExampleDecode() {
	data := []byte(`{
		"robot_id": "R-000017", "boot_id": "01JD3Z8Q5W", "seq": 48151, "time": "2026-11-23T11:19:03.25Z",
		"position": {"lat_deg": 48.137154, "lon_deg": 11.576124, "heading_deg": 271.5, "speed_mps": 1.42, "accuracy_m": 2.5},
		"battery": {"percent": 83.5, "charging": false, "voltage_v": 48.1},
		"status": "fault", "fault": {"code": "MOTOR_STALL"},
		"wheel_rpm": [112, 0]
	}`)
	var r telemetry.Reading
	if err := telemetry.Decode(data, &r); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(r.RobotID, r.Seq, r.Time, r.Status, r.Fault.Code)
	fmt.Println(string(r.Extra))
	// Output:
	// R-000017 48151 2026-11-23 11:19:03.25 +0000 UTC fault MOTOR_STALL
	// {"battery":{"voltage_v":48.1},"wheel_rpm":[112,0]}
}

func ExampleDecode_refused() {
	var r telemetry.Reading
	err := telemetry.Decode([]byte(`{"robot_id": "R-000017", "position": {"lat_deg": 91.5}}`), &r)
	fmt.Println(err)
	// Output:
	// position.lat_deg: found 91.5, want a number of degrees from -90 to 90
}

func ExampleDecodeAny() {
	const reading = `{"robot_id":"R-1","boot_id":"B","seq":%s,"time":"2026-11-23T11:19:03Z",` +
		`"position":{"lat_deg":48.1,"lon_deg":11.5,"heading_deg":0,"speed_mps":0,"accuracy_m":2},` +
		`"battery":{"percent":83,"charging":true},"status":"charging"}`
	body := fmt.Sprintf("["+reading+","+reading+","+reading+"]", "1", `"two"`, "3")

	var r telemetry.Reading
	for text, err := range telemetry.DecodeAny([]byte(body), &r) {
		if err != nil {
			fmt.Printf("refused %d bytes: %v\n", len(text), err)
			continue
		}
		fmt.Printf("took %d bytes: seq %d\n", len(text), r.Seq)
	}
	// Output:
	// took 219 bytes: seq 1
	// refused 223 bytes: seq: found string "two", want an integer from 1 to 9007199254740991
	// took 219 bytes: seq 3
}
