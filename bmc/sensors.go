package bmc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/types"
)

// Sensor is one reading of the hardware.
type Sensor struct {
	Name string `json:"name"`
	Kind string `json:"kind"` // temperature, fan, voltage, current, power, or the BMC's own word
	// Reading in Unit; nil: there is none now, as of a fan while the machine is off.
	Reading *float64 `json:"reading,omitempty"`
	Unit    string   `json:"unit,omitempty"` // °C, rpm, V, A, W, %, or the BMC's own
	// State by the BMC's thresholds: ok, warning, critical, or its own word; "" not told.
	State string `json:"state,omitempty"`
}

// Sensors are the readings of a machine. What could not be read is in Holes and
// never an error of the whole.
type Sensors struct {
	Sensors []Sensor `json:"sensors"`
	Holes   []string `json:"holes,omitempty"`
}

// SensorReader is a Client that reads sensors. Those of Dial and Fake do.
type SensorReader interface {
	Sensors(ctx context.Context) (Sensors, error)
}

var (
	_ SensorReader = (*session)(nil)
	_ SensorReader = (*Fake)(nil)
)

// sensorsMost bounds what is read of one machine.
const sensorsMost = 512

func (s *session) Sensors(ctx context.Context) (Sensors, error) {
	if d, ok := s.seen.driver.(*ipmiDriver); ok {
		return s.ipmiSensors(ctx, d)
	}
	d, err := s.redfish("read sensors")
	if err != nil {
		return Sensors{}, err
	}
	w := &inventoryWalk{session: s, driver: d, all: &Inventory{}}
	found := w.sensors(ctx)
	return Sensors{Sensors: found, Holes: w.all.Holes}, w.err
}

// redfishReading is a Sensor, or a member of the older Thermal and Power.
type redfishReading struct {
	Name     text          `json:"Name"`
	FanName  text          `json:"FanName"` // before Thermal 1.1
	MemberID text          `json:"MemberId"`
	Type     text          `json:"ReadingType"`
	Units    text          `json:"ReadingUnits"`
	Status   redfishStatus `json:"Status"`

	Reading *number `json:"Reading"`
	Celsius *number `json:"ReadingCelsius"`
	Volts   *number `json:"ReadingVolts"`
	Watts   *number `json:"PowerConsumedWatts"`
}

// units as people write them, of those that Redfish (UCUM) and IPMI name.
var units = map[string]string{"cel": "°C", "degrees c": "°C", "degrees f": "°F", "rpm": "rpm", "{rev}/min": "rpm",
	"v": "V", "volts": "V", "a": "A", "amps": "A", "w": "W", "watts": "W", "percent": "%", "%": "%"}

// sensorKinds by the words of both protocols.
var sensorKinds = map[string]string{"temperature": "temperature", "rotational": "fan", "fan": "fan", "voltage": "voltage",
	"current": "current", "power": "power", "power supply": "power"}

func sensorOf(name, kind, unit, state string, reading *number) Sensor {
	s := Sensor{Name: name, Kind: strings.ToLower(kind), Unit: unit, State: severity(state)}
	if k, ok := sensorKinds[s.Kind]; ok {
		s.Kind = k
	}
	if u, ok := units[strings.ToLower(unit)]; ok {
		s.Unit = u
	}
	if reading != nil {
		value := float64(*reading)
		s.Reading = &value
	}
	return s
}

// sensors reads the chassis of the system. Thermal and Power tell most of it in two
// requests; where a chassis has neither, its sensors are read one by one.
func (w *inventoryWalk) sensors(ctx context.Context) (found []Sensor) {
	var system struct {
		Links struct {
			Chassis []redfishLink `json:"Chassis"`
		} `json:"Links"`
	}
	if !w.read(ctx, w.driver.transport.system, &system) {
		w.err = w.failed // it leads to all of them
		return nil
	}
	add := func(kind, unit string, reading func(redfishReading) *number, all []redfishReading) {
		for _, r := range all {
			if r.Status.absent() || len(found) == sensorsMost {
				continue
			}
			name := cmp.Or(r.Name, r.FanName, r.MemberID)
			found = append(found, sensorOf(string(name), kind, either(text(unit), r.Units), string(r.Status.Health), reading(r)))
		}
	}
	for _, link := range system.Links.Chassis[:min(len(system.Links.Chassis), inventoryMost)] {
		var chassis struct {
			Thermal redfishLink `json:"Thermal"`
			Power   redfishLink `json:"Power"`
			Sensors redfishLink `json:"Sensors"`
		}
		if !w.read(ctx, w.driver.local(link.ID), &chassis) {
			continue
		}
		if at := w.driver.local(chassis.Thermal.ID); at != "" {
			var t struct {
				Temperatures []redfishReading `json:"Temperatures"`
				Fans         []redfishReading `json:"Fans"`
			}
			if w.read(ctx, at, &t) {
				add("temperature", "Cel", func(r redfishReading) *number { return r.Celsius }, t.Temperatures)
				add("fan", "", func(r redfishReading) *number { return r.Reading }, t.Fans)
			}
		}
		if at := w.driver.local(chassis.Power.ID); at != "" {
			var p struct {
				Control  []redfishReading `json:"PowerControl"`
				Voltages []redfishReading `json:"Voltages"`
			}
			if w.read(ctx, at, &p) {
				add("power", "W", func(r redfishReading) *number { return r.Watts }, p.Control)
				add("voltage", "V", func(r redfishReading) *number { return r.Volts }, p.Voltages)
			}
		}
		if chassis.Thermal.ID == "" && chassis.Power.ID == "" {
			each(ctx, w, chassis.Sensors, func(r redfishReading) {
				add(string(r.Type), string(r.Units), func(r redfishReading) *number { return r.Reading }, []redfishReading{r})
			})
		}
	}
	return found
}

// ipmiSensors walks the SDR repository. Sensors that tell states and no numbers, and
// those of other controllers, are left out.
func (s *session) ipmiSensors(ctx context.Context, d *ipmiDriver) (all Sensors, err error) {
	const repositoryEnd = 0xffff
	seen := map[uint16]bool{}
	for next := uint16(0); next != repositoryEnd && !seen[next] && len(seen) < 4*sensorsMost; {
		seen[next] = true
		var one *Sensor
		var following uint16 = repositoryEnd
		err := s.call(ctx, "read sensors", func(ctx context.Context) (err error) {
			one, following, err = d.sensor(ctx, next)
			return err
		})
		if err != nil {
			return all, err
		}
		if one != nil {
			all.Sensors = append(all.Sensors, *one)
		}
		next = following
	}
	return all, nil
}

// sensor is what a record of the repository is about, nil where it is no sensor
// with a number; and the record behind it.
func (d *ipmiDriver) sensor(ctx context.Context, record uint16) (found *Sensor, next uint16, err error) {
	next = 0xffff
	var sdr *types.SDR
	err = d.with(ctx, ipmiRetries, func(lib *client.Client) error {
		answer, err := lib.GetSDR(ctx, record)
		var refused *types.ResponseError
		if errors.As(err, &refused) && refused.CompletionCode() == types.CodeRequestedDataNotPresent {
			return nil // an empty repository
		}
		if err != nil {
			return err
		}
		next = answer.NextRecordID
		sdr, _ = types.ParseSDR(answer.RecordData, next) // of a kind that is not known: the next one
		return nil
	})
	if err != nil || sdr == nil || sdr.Full == nil || !sdr.HasAnalogReading() || sdr.Full.GeneratorID.OwnerID() != ipmiBMC || sdr.Full.GeneratorID.LUN() != 0 {
		return nil, next, err
	}
	full := sdr.Full
	s := sensorOf(plainText(string(full.IDStringBytes)), full.SensorType.String(), full.SensorUnit.BaseUnit.String(), "", nil)
	if full.SensorUnit.Percentage {
		s.Unit = "%"
	}
	err = d.with(ctx, ipmiRetries, func(lib *client.Client) error {
		r, err := lib.GetSensorReading(ctx, uint8(full.SensorNumber))
		if err != nil {
			return unlessAnswered(err) // it is not there
		}
		if r.ReadingUnavailable || r.SensorScanningDisabled {
			return nil
		}
		value := types.ConvertReading(r.Reading, full.SensorUnit.AnalogDataFormat, full.ReadingFactors, full.LinearizationFunc)
		if finite(value) { // some formulas have poles
			s.Reading = &value
		}
		switch {
		case r.Above_UNR, r.Above_UCR, r.Below_LNR, r.Below_LCR:
			s.State = "critical"
		case r.Above_UNC, r.Below_LNC:
			s.State = "warning"
		default:
			s.State = "ok"
		}
		return nil
	})
	if err != nil {
		return nil, next, fmt.Errorf("sensor %q: %w", s.Name, err)
	}
	return &s, next, nil
}
