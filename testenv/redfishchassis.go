package testenv

import (
	"net/http"
	"strconv"
	"time"
)

func (b *RedfishBMC) managerCollection([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		return redfishCollection(redfishRoot+"/Managers", "Manager", []string{redfishManager})
	}}
}

func (b *RedfishBMC) managerResource([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		var servers []any
		for _, s := range b.systems {
			servers = append(servers, redfishID(s.path()))
		}
		fields := map[string]any{
			"ManagerType": "BMC", "FirmwareVersion": b.options.Firmware, "Model": b.options.Product, "PowerState": "On",
			"Status": redfishHealthy(), "DateTime": redfishTime(time.Now().Truncate(time.Minute)), "DateTimeLocalOffset": "+00:00",
			"NetworkProtocol": redfishID(redfishManager + "/NetworkProtocol"),
			"Links":           map[string]any{"ManagerForServers": servers, "ManagerForChassis": []any{redfishID(redfishChassis)}},
			"Actions": map[string]any{"#Manager.Reset": map[string]any{
				"target": redfishManager + "/Actions/Manager.Reset", "ResetType@Redfish.AllowableValues": redfishManagerResets,
			}},
		}
		if !b.options.MediaUnderSystem && len(b.allDrives()) > 0 {
			fields["VirtualMedia"] = redfishID(redfishManager + "/VirtualMedia")
		}
		if c := b.ssh.tellsOld(); c != nil {
			fields["SerialConsole"] = c
		}
		return redfishNew(redfishManager, "#Manager.v1_25_0.Manager", "1", "Manager", fields)
	}}
}

// dellScreenshot is iDRAC's own way to see the screen, in the words of its answer.
func (b *RedfishBMC) dellScreenshot([]string) *redfishResource {
	if b.options.Screen == nil {
		return nil
	}
	return &redfishResource{action: true, post: func(c *redfishCall) {
		var action struct{ FileType *string }
		if !c.read(&action) {
			return
		}
		if action.FileType == nil || *action.FileType != "ServerScreenShot" {
			c.refuse(http.StatusBadRequest, "ActionParameterMissing", "DellLCService.ExportServerScreenShot", "FileType")
			return
		}
		b.record("screenshot", "", true)
		c.reply(http.StatusOK, map[string]any{"ServerScreenshotFile": b.options.Screen()})
	}}
}

var redfishManagerResets = []string{"GracefulRestart", "ForceRestart"}

// managerReset restarts the BMC: it answers, then nobody does for a while, and
// afterwards it knows no session.
func (b *RedfishBMC) managerReset([]string) *redfishResource {
	return &redfishResource{action: true, admin: true, post: func(c *redfishCall) {
		var action struct{ ResetType *string }
		if c.r.ContentLength != 0 && !c.read(&action) {
			return
		}
		if t := action.ResetType; t != nil && *t != redfishManagerResets[0] && *t != redfishManagerResets[1] {
			c.refuse(http.StatusBadRequest, "ActionParameterValueNotInList", *t, "ResetType", "Manager.Reset")
			return
		}
		b.record("restart-bmc", "", !c.faults.IgnoreRestart)
		if c.faults.IgnoreRestart {
			c.w.WriteHeader(http.StatusNoContent)
			return
		}
		c.w.Header().Set("Connection", "close")
		c.w.WriteHeader(http.StatusNoContent)
		_ = http.NewResponseController(c.w).Flush()
		b.work.Add(1)
		go func() {
			defer b.work.Done()
			b.restart(c.faults)
		}()
	}}
}

// Restart is what Manager.Reset does.
func (b *RedfishBMC) Restart() { b.restart(b.now()) }

func (b *RedfishBMC) restart(faults BMCFaults) {
	b.listener.rest(faults.Away)
	b.ssh.drop()
	b.DropSessions()
	b.stateMu.Lock()
	b.tasks = nil
	for _, s := range b.systems {
		s.pending, s.job = nil, nil
	}
	b.stateMu.Unlock()
	b.forget()
	if faults.ForgetBoot {
		for _, s := range b.systems {
			s.clearBoot()
		}
	}
	if faults.Redfish.NewCertificateAtRestart {
		if certificate, err := redfishCertificate(); err == nil {
			b.setCertificate(certificate)
		}
	}
}

func (b *RedfishBMC) networkProtocol([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		return redfishNew(redfishManager+"/NetworkProtocol", "#ManagerNetworkProtocol.v1_13_0.ManagerNetworkProtocol", "NetworkProtocol", "Manager Network Protocol", map[string]any{
			"Status": redfishHealthy(), "HostName": "bmc", "FQDN": nil,
			"HTTP": map[string]any{"ProtocolEnabled": false, "Port": nil},
			"HTTPS": map[string]any{
				"ProtocolEnabled": true, "Port": b.port,
				"Certificates": redfishID(redfishManager + "/NetworkProtocol/HTTPS/Certificates"),
			},
			"SSH": b.ssh.protocol(),
		})
	}}
}

func (b *RedfishBMC) chassisCollection([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		return redfishCollection(redfishRoot+"/Chassis", "Chassis", []string{redfishChassis})
	}}
}

func (b *RedfishBMC) chassisResource([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		var systems []any
		for _, s := range b.systems {
			systems = append(systems, redfishID(s.path()))
		}
		fields := map[string]any{
			"ChassisType": "RackMount", "Status": redfishHealthy(), "PowerState": b.systems[0].powerState(),
			"Manufacturer": b.options.Manufacturer, "Model": b.options.Model,
			"Power": redfishID(redfishChassis + "/Power"), "Thermal": redfishID(redfishChassis + "/Thermal"),
			"Sensors": redfishID(redfishChassis + "/Sensors"),
			"Links":   map[string]any{"ComputerSystems": systems, "ManagedBy": []any{redfishID(redfishManager)}},
		}
		if serial := b.board.Load().Serial; serial != "" {
			fields["SerialNumber"] = serial
		}
		return redfishNew(redfishChassis, "#Chassis.v1_28_0.Chassis", "1", "Chassis", fields)
	}}
}

// redfishSensor is a sensor: what it reads while the machine is off and on.
type redfishSensor struct {
	id, name, kind, units, context string
	off, on                        int
}

var redfishSensors = []redfishSensor{
	{"inlet", "Inlet temperature", "Temperature", "Cel", "Intake", 22, 23},
	{"cpu0", "CPU temperature", "Temperature", "Cel", "CPU", 24, 58},
	{"fan0", "Fan 1", "Rotational", "{rev}/min", "SystemBoard", 0, 5400},
	{"fan1", "Fan 2", "Rotational", "{rev}/min", "SystemBoard", 0, 5460},
	{"power", "Power consumption", "Power", "W", "PowerSupply", 12, 180},
	{"p12v", "12 V", "Voltage", "V", "VoltageRegulator", 0, 12},
}

// reading of the sensor: the chassis is warm while any of its systems is on.
func (b *RedfishBMC) reading(sensor redfishSensor) int {
	for _, s := range b.systems {
		if s.machine.Powered() {
			return sensor.on
		}
	}
	return sensor.off
}

func (b *RedfishBMC) sensorCollection([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		var members []string
		for _, s := range redfishSensors {
			members = append(members, redfishChassis+"/Sensors/"+s.id)
		}
		return redfishCollection(redfishChassis+"/Sensors", "Sensor", members)
	}}
}

func (b *RedfishBMC) sensorAt(ids []string) *redfishResource {
	for _, s := range redfishSensors {
		if s.id == ids[0] {
			return &redfishResource{get: func() map[string]any {
				return redfishNew(redfishChassis+"/Sensors/"+s.id, "#Sensor.v1_13_0.Sensor", s.id, s.name, map[string]any{
					"Reading": b.reading(s), "ReadingType": s.kind, "ReadingUnits": s.units, "PhysicalContext": s.context, "Status": redfishHealthy(),
				})
			}}
		}
	}
	return nil
}

// members of the older Power and Thermal resources, which clients still read.
func (b *RedfishBMC) members(path, property, kind string, more func(s redfishSensor, reading int) map[string]any) []any {
	var out []any
	for _, s := range redfishSensors {
		if s.kind != kind {
			continue
		}
		i := strconv.Itoa(len(out))
		m := more(s, b.reading(s))
		m["@odata.id"], m["MemberId"], m["Name"] = path+"#/"+property+"/"+i, i, s.name
		m["Status"] = redfishHealthy()
		out = append(out, m)
	}
	return out
}

func (b *RedfishBMC) powerResource([]string) *redfishResource {
	const path = redfishChassis + "/Power"
	return &redfishResource{get: func() map[string]any {
		control := b.members(path, "PowerControl", "Power", func(s redfishSensor, reading int) map[string]any {
			return map[string]any{"PowerConsumedWatts": reading, "PowerCapacityWatts": 800, "PhysicalContext": s.context}
		})
		voltages := b.members(path, "Voltages", "Voltage", func(s redfishSensor, reading int) map[string]any {
			return map[string]any{"ReadingVolts": reading, "PhysicalContext": s.context}
		})
		supply := map[string]any{
			"@odata.id": path + "#/PowerSupplies/0", "MemberId": "0", "Name": "Power supply 1",
			"PowerCapacityWatts": 800, "PowerSupplyType": "AC", "LineInputVoltage": 230, "Status": redfishHealthy(),
		}
		return redfishNew(path, "#Power.v1_7_3.Power", "Power", "Power", map[string]any{
			"PowerControl": control, "Voltages": voltages, "PowerSupplies": []any{supply},
		})
	}}
}

func (b *RedfishBMC) thermalResource([]string) *redfishResource {
	const path = redfishChassis + "/Thermal"
	return &redfishResource{get: func() map[string]any {
		temperatures := b.members(path, "Temperatures", "Temperature", func(s redfishSensor, reading int) map[string]any {
			return map[string]any{"ReadingCelsius": reading, "PhysicalContext": s.context, "UpperThresholdCritical": 95}
		})
		fans := b.members(path, "Fans", "Rotational", func(_ redfishSensor, reading int) map[string]any {
			return map[string]any{"Reading": reading, "ReadingUnits": "RPM"}
		})
		return redfishNew(path, "#Thermal.v1_7_3.Thermal", "Thermal", "Thermal", map[string]any{
			"Temperatures": temperatures, "Fans": fans, "Status": redfishHealthy(),
		})
	}}
}
