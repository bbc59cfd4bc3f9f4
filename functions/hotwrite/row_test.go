package hotwrite

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/robofleet/robofleet/shared/telemetry"
)

// columns decodes a row as BigQuery does, by the descriptor. Columns that are NULL are absent. It fails on unknown fields, and
// on required ones that are missing.
func columns(t *testing.T, row []byte) map[string]any {
	t.Helper()
	_, md, err := Descriptor()
	if err != nil {
		t.Fatal(err)
	}
	m := dynamicpb.NewMessage(md)
	if err := proto.Unmarshal(row, m); err != nil {
		t.Fatalf("decode row: %v", err)
	}
	if unknown := m.GetUnknown(); len(unknown) > 0 {
		t.Errorf("row has fields that are no columns: %x", unknown)
	}
	got := make(map[string]any)
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		got[string(f.Name())] = v.Interface()
		return true
	})
	return got
}

func TestFieldNumbersAreThePlacesOfTheColumns(t *testing.T) {
	numbers := map[string]protoreflect.FieldNumber{
		"event_id": fieldEventID, "robot_id": fieldRobotID, "boot_id": fieldBootID, "seq": fieldSeq, "time": fieldTime,
		"lat_deg": fieldLat, "lon_deg": fieldLon, "heading_deg": fieldHeading, "speed_mps": fieldSpeed, "accuracy_m": fieldAccuracy,
		"battery_percent": fieldBatteryPercent, "charging": fieldCharging, "status": fieldStatus,
		"fault_code": fieldFaultCode, "fault_message": fieldFaultMessage, "delivery_id": fieldDeliveryID,
		"software_version": fieldSoftwareVersion, "extra": fieldExtra, "publish_time": fieldPublishTime, "ingest_time": fieldIngestTime,
	}
	dp, md, err := Descriptor()
	if err != nil {
		t.Fatal(err)
	}
	sent, read := make(map[string]protoreflect.FieldNumber), make(map[string]protoreflect.FieldNumber)
	for _, f := range dp.GetField() {
		sent[f.GetName()] = protoreflect.FieldNumber(f.GetNumber())
	}
	for i := range md.Fields().Len() {
		read[string(md.Fields().Get(i).Name())] = md.Fields().Get(i).Number()
	}
	if diff := cmp.Diff(numbers, sent); diff != "" {
		t.Errorf("descriptor that BigQuery is sent (-constants +schema):\n%s", diff)
	}
	if diff := cmp.Diff(numbers, read); diff != "" {
		t.Errorf("descriptor for decoding (-constants +schema):\n%s", diff)
	}
}

func TestEveryFieldOfAReadingHasItsColumn(t *testing.T) {
	measured, published, ingested := time.Unix(1, 1000).UTC(), time.Unix(2, 0).UTC(), time.Unix(3, 0).UTC()
	full := telemetry.Reading{
		RobotID: "R-1", BootID: "b1", Seq: 7, Time: measured,
		Position: telemetry.Position{LatDeg: -1.5, LonDeg: 2.5, HeadingDeg: 3.5, SpeedMPS: 4.5, AccuracyM: 5.5},
		Battery:  telemetry.Battery{Percent: 6.5, Charging: true}, Status: telemetry.StatusFault,
		Fault: &telemetry.Fault{Code: "MOTOR_STALL", Message: "blocked"}, DeliveryID: "d-1", SoftwareVersion: "v1",
		Extra: []byte(`{"kg":1}`),
	}
	required := map[string]any{
		"event_id": "R-1/b1/7", "robot_id": "R-1", "boot_id": "b1", "seq": int64(7), "time": measured.UnixMicro(),
		"lat_deg": -1.5, "lon_deg": 2.5, "heading_deg": 3.5, "speed_mps": 4.5, "accuracy_m": 5.5,
		"battery_percent": 6.5, "charging": true, "status": "fault",
		"publish_time": published.UnixMicro(), "ingest_time": ingested.UnixMicro(),
	}
	with := func(base map[string]any, more map[string]any) map[string]any {
		all := make(map[string]any)
		for _, m := range []map[string]any{base, more} {
			for name, value := range m {
				all[name] = value
			}
		}
		return all
	}
	bare := full
	bare.Fault, bare.DeliveryID, bare.SoftwareVersion, bare.Extra = nil, "", "", nil
	short := bare
	short.Fault = &telemetry.Fault{Code: "MOTOR_STALL"}
	zero := telemetry.Reading{RobotID: "R-1", BootID: "b1", Seq: 7, Time: measured, Status: telemetry.StatusIdle}

	for _, tt := range []struct {
		name    string
		reading telemetry.Reading
		want    map[string]any
	}{
		{"all", full, with(required, map[string]any{
			"fault_code": "MOTOR_STALL", "fault_message": "blocked", "delivery_id": "d-1", "software_version": "v1", "extra": `{"kg":1}`,
		})},
		{"nothing optional", bare, required},
		{"a fault without a message", short, with(required, map[string]any{"fault_code": "MOTOR_STALL"})},
		{"zeros are values", zero, with(required, map[string]any{
			"lat_deg": 0.0, "lon_deg": 0.0, "heading_deg": 0.0, "speed_mps": 0.0, "accuracy_m": 0.0, "battery_percent": 0.0,
			"charging": false, "status": "idle",
		})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			row := appendIngestTime(appendRow(nil, []byte("R-1/b1/7"), &tt.reading, published), ingested)
			if diff := cmp.Diff(tt.want, columns(t, row)); diff != "" {
				t.Errorf("row (-want +got):\n%s", diff)
			}
		})
	}
}

func TestIngestTimeFitsInItsRoom(t *testing.T) {
	for _, at := range []time.Time{{}, time.Unix(0, 0), time.Now(), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)} {
		if n := len(appendIngestTime(nil, at)); n > maxIngestTime {
			t.Errorf("%v takes %d bytes, more than maxIngestTime", at, n)
		}
	}
}

func TestViewsNameTheDataset(t *testing.T) {
	sql, err := Views("fleet_test")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"robots_latest", "telemetry_gaps", "telemetry_unique"} {
		if !strings.Contains(sql[name], "`fleet_test.telemetry`") || strings.Contains(sql[name], "${") {
			t.Errorf("view %s: %q, want one over fleet_test.telemetry", name, sql[name])
		}
	}
}
