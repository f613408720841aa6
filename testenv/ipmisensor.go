package testenv

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/bougou/go-ipmi/pkg/hal"
	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

// Numbers of the sensors: first those that are in the SDR repository, then those
// that only log events.
const (
	ipmiSensorInlet = 1 + iota
	ipmiSensorCPU
	ipmiSensorFan
	ipmiSensor12V
	ipmiSensorPower
	ipmiSensorBoot
	ipmiSensorNMI
)

// ipmiSensor is a sensor with thresholds, in raw counts.
type ipmiSensor struct {
	number   uint8
	name     string
	kind     types.SensorType
	entity   types.EntityID
	unit     types.SensorUnitType
	factors  types.ReadingFactors
	on, off  uint8 // reading while the machine is on and off
	critical uint8 // the upper critical threshold, or the lower for a fan
	lower    bool
	always   bool // read while the machine is off, too
}

var ipmiSensors = []ipmiSensor{
	{number: ipmiSensorInlet, name: "Inlet Temp", kind: 0x01, entity: 0x37, unit: types.SensorUnitType_DegreesC,
		factors: types.ReadingFactors{M: 1}, on: 24, off: 22, critical: 42, always: true},
	{number: ipmiSensorCPU, name: "CPU Temp", kind: 0x01, entity: 0x03, unit: types.SensorUnitType_DegreesC,
		factors: types.ReadingFactors{M: 1}, on: 48, critical: 95},
	{number: ipmiSensorFan, name: "Fan 1", kind: 0x04, entity: 0x1d, unit: types.SensorUnitType_RPM,
		factors: types.ReadingFactors{M: 60}, on: 80, critical: 10, lower: true},
	{number: ipmiSensor12V, name: "12V", kind: 0x02, entity: 0x07, unit: types.SensorUnitType_Volts,
		factors: types.ReadingFactors{M: 6, R_Exp: -2}, on: 201, critical: 221},
}

// record is its entry in the SDR repository (43.1).
func (s ipmiSensor) record() []byte {
	full := types.SDRFull{
		GeneratorID: 0x0020, SensorNumber: types.SensorNumber(s.number),
		SensorEntityID: s.entity, SensorEntityInstance: 1,
		SensorInitialization: types.SensorInitialization{InitScanning: true, EventGenerationEnabled: true, SensorScanningEnabled: true},
		SensorCapabilities: types.SensorCapabilities{AutoRearm: true, ThresholdAccess: types.SensorThresholdAccess_Readable,
			EventMessageControl: 3}, // no events
		SensorType: s.kind, SensorEventReadingType: types.EventReadingTypeThreshold,
		SensorUnit:              types.SensorUnit{BaseUnit: s.unit},
		ReadingFactors:          s.factors,
		NominalReadingSpecified: true, NominalReadingRaw: s.on,
		SensorMaxReadingRaw: 0xff,
		IDStringTypeLength:  types.TypeLength(0xc0 | len(s.name)), IDStringBytes: []byte(s.name),
	}
	if s.lower {
		full.LCR_Raw = s.critical
		full.Mask.Threshold.LCR.Readable = true
	} else {
		full.UCR_Raw = s.critical
		full.Mask.Threshold.UCR.Readable = true
	}
	return full.Pack(uint16(s.number))
}

func ipmiSensorByNumber(n uint8) (ipmiSensor, bool) {
	for _, s := range ipmiSensors {
		if s.number == n {
			return s, true
		}
	}
	return ipmiSensor{}, false
}

// registerSensors adds what go-ipmi's server does not have of the sensor device
// (35): readings and thresholds.
func (b *IPMIBMC) registerSensors(r *handlers.Registry) {
	type handler = func(context.Context, *handlers.HandlerContext, []byte) ([]byte, types.CompletionCode, error)
	sensor := func(answer func(ipmiSensor) []byte) handler {
		return func(_ context.Context, _ *handlers.HandlerContext, data []byte) ([]byte, types.CompletionCode, error) {
			if len(data) < 1 {
				return nil, types.CodeRequestDataLengthInvalid, nil
			}
			s, ok := ipmiSensorByNumber(data[0])
			if !ok {
				return nil, types.CodeRequestedDataNotPresent, nil
			}
			return answer(s), types.CodeOK, nil
		}
	}
	r.RegisterFunc(types.CommandGetSDRRepoInfo, sdrInfo)
	r.RegisterFunc(types.CommandGetSensorReading, sensor(b.reading))
	r.RegisterFunc(types.CommandGetSensorThresholds, sensor(ipmiSensor.thresholds))
	r.RegisterFunc(types.CommandGetSensorHysteresis, sensor(func(ipmiSensor) []byte { return []byte{0, 0} }))
	r.RegisterFunc(types.CommandGetSensorType, sensor(func(s ipmiSensor) []byte {
		return []byte{uint8(s.kind), uint8(types.EventReadingTypeThreshold)}
	}))
}

// sdrInfo implements Get SDR Repository Info (33.9). In go-ipmi's the records
// changed at every look, so that FreeIPMI trusts no copy of them.
func sdrInfo(context.Context, *handlers.HandlerContext, []byte) ([]byte, types.CompletionCode, error) {
	const version, plenty, reserves, allocates, changed = 0x51, 0xfffe, 0x02, 0x01, 1700000000
	answer := binary.LittleEndian.AppendUint16([]byte{version}, uint16(len(ipmiSensors)+1))
	answer = binary.LittleEndian.AppendUint16(answer, plenty)
	answer = binary.LittleEndian.AppendUint32(answer, changed) // added to
	answer = binary.LittleEndian.AppendUint32(answer, changed) // erased from
	return append(answer, reserves|allocates), types.CodeOK, nil
}

// reading answers Get Sensor Reading (35.14). What hangs on the machine's power
// cannot be read without it.
func (b *IPMIBMC) reading(s ipmiSensor) []byte {
	const events, scanning, unavailable, none = 0x80, 0x40, 0x20, 0xc0
	on := b.powered()
	switch {
	case on:
		return []byte{s.on, events | scanning, none}
	case s.always:
		return []byte{s.off, events | scanning, none}
	}
	return []byte{0, events | scanning | unavailable, none}
}

// thresholds answers Get Sensor Thresholds (35.9).
func (s ipmiSensor) thresholds() []byte {
	const lowerCritical, upperCritical = 0x02, 0x10
	if s.lower {
		return []byte{lowerCritical, 0, s.critical, 0, 0, 0, 0}
	}
	return []byte{upperCritical, 0, 0, 0, 0, s.critical, 0}
}

// ipmiBlobs are records that never change: the SDR repository, as go-ipmi's server
// wants to read it.
type ipmiBlobs[ID uint8 | uint16] struct {
	ids  []ID
	data map[ID][]byte
}

func (s ipmiBlobs[ID]) Read(_ context.Context, id ID) ([]byte, error) {
	data, ok := s.data[id]
	if !ok {
		return nil, hal.ErrNotFound
	}
	return append([]byte(nil), data...), nil
}

func (ipmiBlobs[ID]) Write(context.Context, ID, []byte) error { return hal.ErrNotSupported }
func (ipmiBlobs[ID]) Delete(context.Context, ID) error        { return hal.ErrNotSupported }

// ipmiFRUs is the label of the one board, which may be swapped.
type ipmiFRUs struct{ label atomic.Pointer[[]byte] }

func (s *ipmiFRUs) DeviceIDs(context.Context) ([]uint8, error) { return []uint8{0}, nil }

func (s *ipmiFRUs) Read(_ context.Context, id uint8) ([]byte, error) {
	if id != 0 {
		return nil, hal.ErrNotFound
	}
	return slices.Clone(*s.label.Load()), nil
}

func (*ipmiFRUs) Write(context.Context, uint8, []byte) error { return hal.ErrNotSupported }
func (*ipmiFRUs) Delete(context.Context, uint8) error        { return hal.ErrNotSupported }

// setSerial prints another one on the label.
func (s *ipmiFRUs) setSerial(serial string) error {
	label, err := types.PackFRU(types.FRUPackConfig{
		Chassis: &types.FRUPackChassis{Type: 0x17, PartNumber: "recast-chassis", Serial: serial},
		Board:   &types.FRUPackBoard{Mfg: "recast", Product: "virtual board", Serial: serial, PartNumber: "recast-board"},
		Product: &types.FRUPackProduct{Manufacturer: "recast", Name: "virtual machine", PartModel: "recast-vm", Version: "1", Serial: serial},
	})
	if err != nil {
		return fmt.Errorf("write the FRU inventory: %w", err)
	}
	s.label.Store(&label)
	return nil
}

type ipmiSDRs struct{ ipmiBlobs[uint16] }

func (s ipmiSDRs) RecordIDs(context.Context) ([]uint16, error) { return s.ids, nil }

type ipmiStorage struct {
	fru ipmiFRUs
	sdr ipmiSDRs
}

func (s *ipmiStorage) FRU() hal.FRUStore { return &s.fru }
func (s *ipmiStorage) SDR() hal.SDRStore { return s.sdr }

// newIPMIStorage describes the machine: its sensors, its BMC, and what is
// printed on its label.
func newIPMIStorage(serial string) (*ipmiStorage, error) {
	s := &ipmiStorage{sdr: ipmiSDRs{ipmiBlobs[uint16]{data: map[uint16][]byte{}}}}
	if err := s.fru.setSerial(serial); err != nil {
		return nil, err
	}
	add := func(id uint16, record []byte) {
		s.sdr.ids = append(s.sdr.ids, id)
		s.sdr.data[id] = record
	}
	for _, sensor := range ipmiSensors {
		add(uint16(sensor.number), sensor.record())
	}
	controller := uint16(len(ipmiSensors) + 1)
	add(controller, types.PackMCLocator(types.MCLocatorPackOpts{RecordID: controller, DeviceSupport: 0x8f, Name: "BMC"}))
	return s, nil
}
