package testenv

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// redfishForeign runs a client that is not ours.
func redfishForeign(t *testing.T, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, program, args...)
	// requests lets *_CA_BUNDLE variables overrule that nothing is to be verified.
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "PYTHONWARNINGS=ignore"}
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", program, args, err, out)
	}
	return string(out)
}

const redfishPython = "/usr/bin/python3" // Debian's, which has Debian's modules

func TestSushyDrivesTheBMC(t *testing.T) {
	if exec.Command(redfishPython, "-c", "import sushy").Run() != nil {
		t.Skip("needs sushy (apt-get install python3-sushy)")
	}
	const script = `
import sys, sushy, sushy.auth
addr, image, auth = sys.argv[1:4]
auth = sushy.auth.SessionAuth("admin", "secret") if auth == "session" else sushy.auth.BasicAuth("admin", "secret")
root = sushy.Sushy("https://" + addr, verify=False, auth=auth)
system = root.get_system("/redfish/v1/Systems/1")
print("power", system.power_state.value)
print("secure boot", system.secure_boot.enabled, system.secure_boot.current_boot.value, system.secure_boot.mode.value)
print("resets", " ".join(sorted(r.value for r in system.get_allowed_reset_system_values())))
print("targets", " ".join(sorted(t.value for t in system.get_allowed_system_boot_source_values())))
system.set_system_boot_options(sushy.BootSource.PXE, enabled=sushy.BootSourceOverrideEnabled.ONCE, mode=sushy.BootSourceOverrideMode.UEFI)
system.refresh()
print("boot", system.boot.target.value, system.boot.enabled.value, system.boot.mode.value)
system.reset_system(sushy.ResetType.ON)
system.refresh()
print("power", system.power_state.value, system.boot.enabled.value)
manager = root.get_manager_collection().get_members()[0]
print("manager", manager.manager_type.value, manager.firmware_version)
drive = manager.virtual_media.get_members()[0]
print("drive", " ".join(sorted(m.value for m in drive.media_types)), drive.inserted)
drive.insert_media(image)
drive.invalidate(); drive.refresh()
print("drive", drive.inserted, drive.image_name, drive.image == image)
drive.eject_media()
drive.invalidate(); drive.refresh()
print("drive", drive.inserted)
chassis = root.get_chassis_collection().get_members()[0]
print("chassis", chassis.chassis_type.value, chassis.power_state.value)
print("temperatures", len(chassis.thermal.temperatures), "fans", len(chassis.thermal.fans), "supplies", len(chassis.power.power_supplies))
print("sessions", len(root.get_session_service().sessions.get_members()) > 0)
print("tasks", len(root.get_task_service().tasks.get_members()))
events = root.get_event_service()
sub = events.subscriptions.create({"Destination": "http://127.0.0.1:9/", "Protocol": "Redfish", "Context": "c", "EventTypes": ["Alert"]})
print("subscriptions", len(events.subscriptions.get_members()))
certificates = root.get_certificate_service().certificate_locations
print("certificates", len(certificates.get_members()))
`
	const want = `power Off
secure boot True Enabled UserMode
resets ForceOff ForceOn ForceRestart GracefulRestart GracefulShutdown Nmi On PowerCycle PushPowerButton
targets Cd Hdd None Pxe UefiHttp
boot Pxe Once UEFI
power On Disabled
manager BMC 1.0
drive CD DVD False
drive True boot.iso True
drive False
chassis RackMount On
temperatures 2 fans 2 supplies 1
sessions SESSIONS
tasks 0
subscriptions 1
certificates 1
`
	image := redfishImageServer(t, make([]byte, 4096))
	for _, auth := range []string{"session", "basic"} {
		t.Run(auth, func(t *testing.T) {
			machine := &SimMachine{Firmware: true}
			b := redfishBMC(t, machine, RedfishOptions{Hardware: RedfishHardware{SecureBoot: "Enabled"}})
			out := redfishForeign(t, redfishPython, "-c", script, b.Addr(), image, auth)
			sessions := "True"
			if auth == "basic" {
				sessions = "False"
			}
			if want := strings.Replace(want, "SESSIONS", sessions, 1); out != want {
				t.Errorf("got\n%s\nwant\n%s", out, want)
			}
			if starts := machine.Starts(); len(starts) != 1 || starts[0] != (BootOnce{Device: BootPXE, UEFI: true}) {
				t.Errorf("starts %v, want one from pxe", starts)
			}
			if b.Done("insert") != 1 || b.Done("eject") != 1 {
				t.Errorf("log %v", b.Requests())
			}
		})
	}
	t.Run("ways of vendors", func(t *testing.T) {
		for name, faults := range map[string]RedfishFaults{
			"settings object":       {Settings: SettingsObject},
			"only a patch of media": {Media: RedfishMediaFaults{OnlyPatch: true}},
			"weak etags":            {ETag: ETagWeakFalse},
			"actions in a resource": {Settings: SettingsDecoy},
			"nothing superfluous":   {Media: RedfishMediaFaults{Need: []string{"TransferProtocolType"}}},
		} {
			t.Run(name, func(t *testing.T) {
				machine := &SimMachine{Firmware: true}
				b := redfishBMC(t, machine, RedfishOptions{BaseRegistry: "Base.1.5", Faults: BMCFaults{NeedETag: faults.ETag != "", Redfish: faults}})
				redfishForeign(t, redfishPython, "-c", `
import sys, sushy, sushy.auth
root = sushy.Sushy("https://" + sys.argv[1], verify=False, auth=sushy.auth.BasicAuth("admin", "secret"))
system = root.get_system("/redfish/v1/Systems/1")
system.set_system_boot_options(sushy.BootSource.PXE, enabled=sushy.BootSourceOverrideEnabled.ONCE, mode=sushy.BootSourceOverrideMode.UEFI)
system.reset_system(sushy.ResetType.ON)
root.get_manager_collection().get_members()[0].virtual_media.get_members()[0].insert_media(sys.argv[2])
`, b.Addr(), image)
				if starts := machine.Starts(); len(starts) != 1 || starts[0].Device != BootPXE || machine.Medium() == nil {
					t.Errorf("starts %v, medium %v", starts, machine.Medium())
				}
			})
		}
	})
}

func TestRedfishtoolDrivesTheBMC(t *testing.T) {
	if _, err := exec.LookPath("redfishtool"); err != nil {
		t.Skip("needs redfishtool (apt-get install redfishtool)")
	}
	machine := &SimMachine{Firmware: true}
	b := redfishBMC(t, machine, RedfishOptions{UUID: "8a1f0f52-0000-4000-8000-000000000005"})
	for _, auth := range []string{"Basic", "Session"} {
		tool := func(want string, args ...string) {
			t.Helper()
			out := redfishForeign(t, "redfishtool", append([]string{"-r", b.Addr(), "-u", "admin", "-p", "secret", "-A", auth, "-S", "Always"}, args...)...)
			if !strings.Contains(out, want) {
				t.Errorf("%s %q: no %s in %s", auth, args, want, out)
			}
		}
		b.AddLogEntry("Warning", "a fan is slow")
		tool(`"RedfishVersion"`, "root")
		tool(`"PowerState": "Off"`, "Systems", "-1")
		tool(``, "Systems", "-1", "setBootOverride", "Once", "Pxe")
		tool(`"BootSourceOverrideTarget": "Pxe"`, "Systems", "-1")
		tool(``, "Systems", "-1", "reset", "On")
		tool(`"PowerState": "On"`, "Systems", "-1", "get")
		tool(``, "Systems", "-1", "reset", "ForceOff")
		tool(`"SEL"`, "Systems", "-1", "Logs", "list")
		// Its clearLog is announced, but not written yet.
		tool(`"a fan is slow"`, "raw", "GET", redfishTestSystem+"/LogServices/SEL/Entries")
		tool(``, "-d", "{}", "raw", "POST", redfishTestSystem+"/LogServices/SEL/Actions/LogService.ClearLog")
		tool(`"BMC"`, "Managers", "-1")
		tool(`"HTTPS"`, "Managers", "-1", "NetworkProtocol")
		tool(`"Fans"`, "Chassis", "-1", "Thermal")
		tool(`"PowerControl"`, "Chassis", "-1", "Power")
		tool(``, "AccountService", "adduser", "tom", "longenough", "Operator")
		tool(`"tom"`, "AccountService", "Accounts", "list")
		tool(``, "AccountService", "setpassword", "tom", "quite another")
		tool(``, "AccountService", "useradmin", "tom", "disable")
		tool(``, "AccountService", "deleteuser", "tom")
		tool(`"SessionTimeout"`, "SessionService")
		tool(``, "SessionService", "setSessionTimeout", "600")
		if b.Password("tom") != "" {
			t.Error("tom is still there")
		}
	}
	for verb, n := range map[string]int{"power-on": 2, "power-off": 2, "set-boot": 2, "clear-log": 2, "set-account": 8, "set-service": 2} {
		if b.Done(verb) != n {
			t.Errorf("%d times %s, want %d", b.Done(verb), verb, n)
		}
	}
	if starts := machine.Starts(); len(starts) != 2 || starts[0].Device != BootPXE || starts[1].Device != BootPXE {
		t.Errorf("starts %v", starts)
	}
	if b.Sessions() != 0 {
		t.Errorf("%d sessions left", b.Sessions())
	}
}
