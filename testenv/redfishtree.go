package testenv

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

const (
	redfishRoot    = "/redfish/v1"
	redfishManager = redfishRoot + "/Managers/1"
	redfishChassis = redfishRoot + "/Chassis/1"
)

// redfishRoutes is the tree: a * stands for one word, which the function gets. It
// returns nil where there is no such thing.
var redfishRoutes = []struct {
	pattern string
	at      func(*RedfishBMC, []string) *redfishResource
}{
	{"", (*RedfishBMC).rootResource},
	{"odata", (*RedfishBMC).odataResource},
	{"$metadata", (*RedfishBMC).metadataResource},
	{"Systems", (*RedfishBMC).systemCollection},
	{"Systems/*", (*RedfishBMC).systemAt},
	{"Systems/*/Settings", func(b *RedfishBMC, ids []string) *redfishResource { return b.settingsAt(ids, "Settings") }},
	{"Systems/*/SD", func(b *RedfishBMC, ids []string) *redfishResource { return b.settingsAt(ids, "SD") }},
	{"Systems/*/ResetActionInfo", (*RedfishBMC).resetInfoAt},
	{"Systems/*/Actions/ComputerSystem.Reset", (*RedfishBMC).resetAt},
	{"Systems/*/LogServices", (*RedfishBMC).logServiceCollection},
	{"Systems/*/LogServices/SEL", (*RedfishBMC).logServiceAt},
	{"Systems/*/LogServices/SEL/Entries", (*RedfishBMC).logEntryCollection},
	{"Systems/*/LogServices/SEL/Entries/*", (*RedfishBMC).logEntryAt},
	{"Systems/*/LogServices/SEL/Actions/LogService.ClearLog", (*RedfishBMC).clearLogAt},
	{"Systems/*/VirtualMedia", (*RedfishBMC).systemMediaCollection},
	{"Systems/*/VirtualMedia/*", (*RedfishBMC).systemMediaAt},
	{"Systems/*/VirtualMedia/*/Actions/*", (*RedfishBMC).systemMediaActionAt},
	{"Systems/*/EthernetInterfaces", (*RedfishBMC).ethernetAt},
	{"Systems/*/EthernetInterfaces/*", (*RedfishBMC).ethernetAt},
	{"Systems/*/Processors", (*RedfishBMC).processorAt},
	{"Systems/*/Processors/*", (*RedfishBMC).processorAt},
	{"Systems/*/SecureBoot", (*RedfishBMC).secureBootAt},
	{"Systems/*/Storage", (*RedfishBMC).storageAt},
	{"Systems/*/Storage/*", (*RedfishBMC).storageAt},
	{"Systems/*/Storage/0/Drives/*", (*RedfishBMC).driveAt},
	{"Managers", (*RedfishBMC).managerCollection},
	{"Managers/1", (*RedfishBMC).managerResource},
	{"Managers/1/Actions/Manager.Reset", (*RedfishBMC).managerReset},
	{"Managers/1/NetworkProtocol", (*RedfishBMC).networkProtocol},
	{"Managers/1/NetworkProtocol/HTTPS/Certificates", (*RedfishBMC).certificateCollection},
	{"Managers/1/NetworkProtocol/HTTPS/Certificates/1", (*RedfishBMC).certificateResource},
	{"Managers/1/VirtualMedia", (*RedfishBMC).managerMediaCollection},
	{"Managers/1/VirtualMedia/*", (*RedfishBMC).managerMediaAt},
	{"Managers/1/VirtualMedia/*/Actions/*", (*RedfishBMC).managerMediaActionAt},
	{"Chassis", (*RedfishBMC).chassisCollection},
	{"Chassis/1", (*RedfishBMC).chassisResource},
	{"Chassis/1/Power", (*RedfishBMC).powerResource},
	{"Chassis/1/Thermal", (*RedfishBMC).thermalResource},
	{"Chassis/1/Sensors", (*RedfishBMC).sensorCollection},
	{"Chassis/1/Sensors/*", (*RedfishBMC).sensorAt},
	{"SessionService", (*RedfishBMC).sessionService},
	{"SessionService/Sessions", (*RedfishBMC).sessionCollection},
	{"SessionService/Sessions/*", func(b *RedfishBMC, ids []string) *redfishResource { return b.sessionAt(ids[0]) }},
	{"AccountService", (*RedfishBMC).accountService},
	{"AccountService/Accounts", (*RedfishBMC).accountCollection},
	{"AccountService/Accounts/*", (*RedfishBMC).accountAt},
	{"AccountService/Roles", (*RedfishBMC).roleCollection},
	{"AccountService/Roles/*", (*RedfishBMC).roleAt},
	{"TaskService", (*RedfishBMC).taskService},
	{"TaskService/Tasks", (*RedfishBMC).taskCollection},
	{"TaskService/Tasks/*", (*RedfishBMC).taskAt},
	{"TaskService/TaskMonitors/*", (*RedfishBMC).taskMonitorAt},
	{"EventService", (*RedfishBMC).eventService},
	{"EventService/Subscriptions", (*RedfishBMC).subscriptionCollection},
	{"EventService/Subscriptions/*", (*RedfishBMC).subscriptionAt},
	{"EventService/SSE", (*RedfishBMC).eventStream},
	{"EventService/Actions/EventService.SubmitTestEvent", (*RedfishBMC).testEvent},
	{"CertificateService", (*RedfishBMC).certificateService},
	{"CertificateService/CertificateLocations", (*RedfishBMC).certificateLocations},
	{"CertificateService/Actions/CertificateService.ReplaceCertificate", (*RedfishBMC).replaceCertificate},
	{"CertificateService/Actions/CertificateService.GenerateCSR", (*RedfishBMC).generateCSR},
	{"Dell/Managers/iDRAC.Embedded.1/DellLCService/Actions/DellLCService.ExportServerScreenShot", (*RedfishBMC).dellScreenshot},
	{"Registries", (*RedfishBMC).registryCollection},
	{"Registries/*", (*RedfishBMC).registryAt},
}

// redfishWords are the patterns in words, made once.
var redfishWords = func() [][]string {
	words := make([][]string, len(redfishRoutes))
	for i, r := range redfishRoutes {
		words[i] = strings.Split(r.pattern, "/")
	}
	return words
}()

// find is what stands at a path, or nil.
func (b *RedfishBMC) find(path string) *redfishResource {
	if path == "/redfish" {
		return &redfishResource{public: true, serve: func(c *redfishCall) {
			c.w.Header().Set("Content-Type", "application/json")
			_, _ = c.w.Write([]byte(`{"v1":"` + redfishRoot + `/"}`))
		}}
	}
	rest, ok := strings.CutPrefix(path, redfishRoot)
	if !ok || rest != "" && rest[0] != '/' {
		return nil
	}
	words := strings.Split(strings.TrimPrefix(rest, "/"), "/")
	for i, pattern := range redfishWords {
		if ids, ok := redfishMatch(pattern, words); ok {
			return redfishRoutes[i].at(b, ids)
		}
	}
	return nil
}

func redfishMatch(pattern, words []string) (ids []string, ok bool) {
	if len(pattern) != len(words) {
		return nil, false
	}
	for i, p := range pattern {
		if p != "*" && p != words[i] {
			return nil, false
		}
	}
	for i, p := range pattern {
		if p == "*" {
			ids = append(ids, words[i])
		}
	}
	return ids, true
}

func (b *RedfishBMC) rootResource([]string) *redfishResource {
	return &redfishResource{public: true, get: func() map[string]any {
		fields := map[string]any{
			"RedfishVersion":     "1.20.0",
			"Vendor":             b.options.Vendor,
			"Product":            b.options.Product,
			"Systems":            redfishID(redfishRoot + "/Systems"),
			"Managers":           redfishID(redfishRoot + "/Managers"),
			"Chassis":            redfishID(redfishRoot + "/Chassis"),
			"SessionService":     redfishID(redfishSessionService),
			"AccountService":     redfishID(redfishAccountService),
			"Tasks":              redfishID(redfishTaskService),
			"EventService":       redfishID(redfishEventService),
			"CertificateService": redfishID(redfishCertificateService),
			"Registries":         redfishID(redfishRoot + "/Registries"),
			"Links":              map[string]any{"Sessions": redfishID(redfishSessions)},
			"ProtocolFeaturesSupported": map[string]any{
				"ExcerptQuery": false, "FilterQuery": false, "OnlyMemberQuery": false, "SelectQuery": false,
			},
		}
		if b.options.UUID != "" {
			fields["UUID"] = b.options.UUID
		}
		return redfishNew(redfishRoot+"/", "#ServiceRoot.v1_21_0.ServiceRoot", "RootService", "Root Service", fields)
	}}
}

// odataResource is the OData service document (DSP0266, 8.4.3).
func (b *RedfishBMC) odataResource([]string) *redfishResource {
	return &redfishResource{public: true, serve: func(c *redfishCall) {
		var value []any
		for _, name := range []string{"Systems", "Managers", "Chassis", "SessionService", "AccountService", "TaskService", "EventService", "CertificateService", "Registries"} {
			value = append(value, map[string]any{"name": name, "kind": "Singleton", "url": redfishRoot + "/" + name})
		}
		c.reply(http.StatusOK, map[string]any{"@odata.context": redfishRoot + "/$metadata", "value": value})
	}}
}

// redfishSchemas are the types of the tree and their versions, of DSP8010.
var redfishSchemas = []string{
	"AccountService.v1_18_1", "ActionInfo.v1_6_0", "Certificate.v1_11_0", "CertificateCollection", "CertificateLocations.v1_0_4",
	"CertificateService.v1_2_2", "Drive.v1_22_0", "EthernetInterface.v1_12_5", "EthernetInterfaceCollection", "Processor.v1_23_0", "ProcessorCollection", "Storage.v1_22_0", "StorageCollection", "Chassis.v1_28_0", "ChassisCollection", "ComputerSystem.v1_28_0", "ComputerSystemCollection",
	"Event.v1_13_0", "EventDestination.v1_17_0", "EventDestinationCollection", "EventService.v1_12_0", "LogEntry.v1_21_0",
	"LogEntryCollection", "LogService.v1_9_0", "LogServiceCollection", "Manager.v1_25_0", "ManagerAccount.v1_14_1",
	"ManagerAccountCollection", "ManagerCollection", "ManagerNetworkProtocol.v1_13_0", "Message.v1_3_0", "MessageRegistryFile.v1_1_5",
	"MessageRegistryFileCollection", "Power.v1_7_3", "Role.v1_3_3", "RoleCollection", "SecureBoot.v1_1_2", "Sensor.v1_13_0", "SensorCollection",
	"ServiceRoot.v1_21_0", "Session.v1_8_0", "SessionCollection", "SessionService.v1_2_0", "Settings.v1_5_0", "Task.v1_7_4",
	"TaskCollection", "TaskService.v1_3_0", "Thermal.v1_7_3", "VirtualMedia.v1_6_5", "VirtualMediaCollection",
}

// metadataResource names the schemas, as OData clients want (DSP0266, 8.4.2).
func (b *RedfishBMC) metadataResource([]string) *redfishResource {
	return &redfishResource{public: true, serve: func(c *redfishCall) {
		var body strings.Builder
		body.WriteString(xml.Header + `<edmx:Edmx xmlns:edmx="http://docs.oasis-open.org/odata/ns/edmx" Version="4.0">` + "\n")
		for _, name := range redfishSchemas {
			kind, _, versioned := strings.Cut(name, ".")
			file := kind
			if versioned || strings.HasSuffix(kind, "Collection") {
				file += "_v1"
			}
			fmt.Fprintf(&body, `<edmx:Reference Uri="http://redfish.dmtf.org/schemas/v1/%s.xml"><edmx:Include Namespace="%s"/>`, file, kind)
			if versioned {
				fmt.Fprintf(&body, `<edmx:Include Namespace="%s"/>`, name)
			}
			body.WriteString("</edmx:Reference>\n")
		}
		body.WriteString(`<edmx:DataServices><Schema xmlns="http://docs.oasis-open.org/odata/ns/edm" Namespace="Service">` +
			`<EntityContainer Name="Service" Extends="ServiceRoot.v1_21_0.ServiceContainer"/></Schema></edmx:DataServices></edmx:Edmx>` + "\n")
		c.w.Header().Set("Content-Type", "application/xml")
		_, _ = c.w.Write([]byte(body.String()))
	}}
}

// registryCollection names the message registries; their text is DMTF's.
func (b *RedfishBMC) registryCollection([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		return redfishCollection(redfishRoot+"/Registries", "MessageRegistryFile",
			[]string{redfishRoot + "/Registries/Base", redfishRoot + "/Registries/ResourceEvent"})
	}}
}

func (b *RedfishBMC) registryAt(ids []string) *redfishResource {
	registry, ok := redfishRegistries[ids[0]]
	if !ok || !slices.Contains([]string{"Base", "ResourceEvent"}, ids[0]) {
		return nil
	}
	return &redfishResource{get: func() map[string]any {
		return redfishNew(redfishRoot+"/Registries/"+ids[0], "#MessageRegistryFile.v1_1_5.MessageRegistryFile", ids[0], ids[0]+" Message Registry File", map[string]any{
			"Registry": registry, "Languages": []string{"en"},
			"Location": []any{map[string]any{"Language": "en", "PublicationUri": "https://redfish.dmtf.org/registries/" + registry + ".0.json"}},
		})
	}}
}

func redfishHealthy() map[string]any { return map[string]any{"State": "Enabled", "Health": "OK"} }

func redfishID(path string) map[string]any { return map[string]any{"@odata.id": path} }

func redfishNew(path, kind, id, name string, fields map[string]any) map[string]any {
	fields["@odata.id"], fields["@odata.type"], fields["Id"], fields["Name"] = path, kind, id, name
	return fields
}

func redfishCollection(path, kind string, members []string) map[string]any {
	links := make([]any, 0, len(members))
	for _, m := range members {
		links = append(links, redfishID(m))
	}
	return map[string]any{
		"@odata.id": path, "@odata.type": "#" + kind + "Collection." + kind + "Collection", "Name": kind + " Collection",
		"Members": links, "Members@odata.count": len(links),
	}
}
