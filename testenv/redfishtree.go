package testenv

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"recast/inventory"
)

// redfishTargets are the boot targets on offer.
var redfishTargets = map[string]BootDevice{"None": BootNone, "Pxe": BootPXE, "Hdd": BootDisk}

// redfishOverride applies a patch to the override in force: what is left out
// stays. It returns why a patch is refused.
func redfishOverride(patch redfishBootPatch, now BootOnce, uefi bool) (BootOnce, string) {
	target, enabled := "None", "Disabled"
	mode := now.UEFI
	if now.Device != BootNone {
		enabled = "Once"
		for name, device := range redfishTargets {
			if device == now.Device {
				target = name
			}
		}
	} else {
		mode = uefi
	}
	if v := patch.Boot.BootSourceOverrideTarget; v != nil {
		target = *v
	}
	if v := patch.Boot.BootSourceOverrideEnabled; v != nil {
		enabled = *v
	}
	if v := patch.Boot.BootSourceOverrideMode; v != nil {
		switch *v {
		case "UEFI":
			mode = true
		case "Legacy":
			mode = false
		default:
			return BootOnce{}, "The value of BootSourceOverrideMode is not in the list."
		}
	}
	device, ok := redfishTargets[target]
	if !ok {
		return BootOnce{}, "The value of BootSourceOverrideTarget is not in the list."
	}
	switch enabled {
	case "Disabled":
		return BootOnce{}, ""
	case "Once":
		if device == BootNone {
			return BootOnce{}, ""
		}
		return BootOnce{Device: device, UEFI: mode}, ""
	}
	return BootOnce{}, "The value of BootSourceOverrideEnabled is not in the list."
}

func (b *RedfishBMC) get(w http.ResponseWriter, path string) {
	rest := strings.TrimPrefix(path, redfishRoot)
	switch {
	case rest == "/SessionService":
		redfishReply(w, http.StatusOK, redfishResource(path, "#SessionService.v1_1_8.SessionService", "SessionService", map[string]any{
			"ServiceEnabled": true, "Sessions": redfishID(redfishSessions),
		}))
	case rest == "/SessionService/Sessions":
		b.tokenMu.Lock()
		var members []string
		for _, id := range b.tokens {
			members = append(members, redfishSessions+"/"+id)
		}
		b.tokenMu.Unlock()
		redfishReply(w, http.StatusOK, redfishCollection(path, "Session", members))
	case rest == "/Systems":
		members := []string{b.systemPath()}
		for _, other := range b.options.OtherSystems {
			members = append(members, redfishRoot+"/Systems/"+other)
		}
		redfishReply(w, http.StatusOK, redfishCollection(path, "ComputerSystem", members))
	case path == b.systemPath():
		system := b.system()
		w.Header().Set("ETag", redfishETag(system))
		redfishReply(w, http.StatusOK, system)
	case slices.Contains(b.options.OtherSystems, strings.TrimPrefix(rest, "/Systems/")):
		redfishReply(w, http.StatusOK, redfishResource(path, "#ComputerSystem.v1_13_0.ComputerSystem", strings.TrimPrefix(rest, "/Systems/"), map[string]any{
			"PowerState": "Off", "Boot": map[string]any{"BootSourceOverrideEnabled": "Disabled", "BootSourceOverrideTarget": "None"},
		}))
	case rest == "/Managers":
		redfishReply(w, http.StatusOK, redfishCollection(path, "Manager", []string{path + "/1"}))
	case rest == "/Managers/1":
		redfishReply(w, http.StatusOK, redfishResource(path, "#Manager.v1_9_0.Manager", "1", map[string]any{
			"ManagerType": "BMC", "FirmwareVersion": "1.0", "Status": redfishHealthy,
			"Links": map[string]any{"ManagerForServers": []any{redfishID(b.systemPath())}},
		}))
	case rest == "/Chassis":
		redfishReply(w, http.StatusOK, redfishCollection(path, "Chassis", []string{path + "/1"}))
	case rest == "/Chassis/1":
		redfishReply(w, http.StatusOK, redfishResource(path, "#Chassis.v1_14_0.Chassis", "1", map[string]any{
			"ChassisType": "RackMount", "Status": redfishHealthy, "PowerState": b.powerState(),
			"Links": map[string]any{"ComputerSystems": []any{redfishID(b.systemPath())}},
		}))
	default:
		redfishNotFound(w)
	}
}

func (b *RedfishBMC) powerState() string {
	if b.machine.Powered() {
		return "On"
	}
	return "Off"
}

func (b *RedfishBMC) root() map[string]any {
	return redfishResource(redfishRoot+"/", "#ServiceRoot.v1_9_0.ServiceRoot", "RootService", map[string]any{
		"RedfishVersion": "1.11.0",
		"Vendor":         "recast",
		"UUID":           b.options.UUID,
		"Systems":        redfishID(redfishRoot + "/Systems"),
		"Managers":       redfishID(redfishRoot + "/Managers"),
		"Chassis":        redfishID(redfishRoot + "/Chassis"),
		"SessionService": redfishID(redfishRoot + "/SessionService"),
		"Links":          map[string]any{"Sessions": redfishID(redfishSessions)},
	})
}

func (b *RedfishBMC) system() map[string]any {
	once := b.boot()
	boot := map[string]any{
		"BootSourceOverrideTarget":                         "None",
		"BootSourceOverrideEnabled":                        "Disabled",
		"BootSourceOverrideMode":                           redfishMode(b.machine.UEFI()),
		"BootSourceOverrideTarget@Redfish.AllowableValues": []string{"None", "Pxe", "Hdd"},
		"BootSourceOverrideMode@Redfish.AllowableValues":   []string{"UEFI", "Legacy"},
	}
	if once.Device != BootNone {
		boot["BootSourceOverrideEnabled"] = "Once"
		boot["BootSourceOverrideMode"] = redfishMode(once.UEFI)
		for name, device := range redfishTargets {
			if device == once.Device {
				boot["BootSourceOverrideTarget"] = name
			}
		}
	}
	path := b.systemPath()
	return redfishResource(path, "#ComputerSystem.v1_13_0.ComputerSystem", b.options.SystemID, map[string]any{
		"SystemType":   "Physical",
		"Manufacturer": "recast",
		"Model":        "virtual machine",
		"UUID":         b.options.UUID,
		"PowerState":   b.powerState(),
		"Status":       redfishHealthy,
		"Boot":         boot,
		"Actions": map[string]any{"#ComputerSystem.Reset": map[string]any{
			"target":                            path + "/Actions/ComputerSystem.Reset",
			"ResetType@Redfish.AllowableValues": redfishResets,
		}},
		"Links": map[string]any{
			"ManagedBy": []any{redfishID(redfishRoot + "/Managers/1")},
			"Chassis":   []any{redfishID(redfishRoot + "/Chassis/1")},
		},
	})
}

var redfishHealthy = map[string]string{"State": "Enabled", "Health": "OK"}

func redfishMode(uefi bool) string {
	if uefi {
		return "UEFI"
	}
	return "Legacy"
}

func redfishID(path string) map[string]string { return map[string]string{"@odata.id": path} }

func redfishResource(path, kind, id string, fields map[string]any) map[string]any {
	fields["@odata.id"], fields["@odata.type"], fields["Id"], fields["Name"] = path, kind, id, id
	return fields
}

func redfishCollection(path, kind string, members []string) map[string]any {
	links := make([]any, 0, len(members))
	for _, m := range members {
		links = append(links, redfishID(m))
	}
	return map[string]any{
		"@odata.id": path, "@odata.type": "#" + kind + "Collection." + kind + "Collection", "Name": kind + " collection",
		"Members": links, "Members@odata.count": len(links),
	}
}

// redfishETag is strong and follows the content.
func redfishETag(resource map[string]any) string {
	body, _ := json.Marshal(resource)
	return `"` + inventory.DigestOf(body).Short() + `"`
}

func redfishReply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func redfishError(w http.ResponseWriter, status int, id, text string) {
	redfishReply(w, status, map[string]any{"error": map[string]any{
		"code": id, "message": text,
		"@Message.ExtendedInfo": []any{map[string]any{"MessageId": id, "Message": text, "Severity": "Critical"}},
	}})
}

func redfishNotFound(w http.ResponseWriter) {
	redfishError(w, http.StatusNotFound, "Base.1.8.ResourceMissingAtURI", "The resource was not found.")
}
