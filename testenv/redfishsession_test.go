package testenv

import (
	"net/http"
	"testing"
	"time"
)

func redfishLogin(t *testing.T, b *RedfishBMC, user, password string) (token http.Header, location string) {
	t.Helper()
	status, header, answer := redfishDo(t, b, "POST", redfishSessions, `{"UserName":"`+user+`","Password":"`+password+`"}`, nil)
	if status != http.StatusCreated {
		t.Fatalf("login of %s: %d %v", user, status, answer)
	}
	return http.Header{"X-Auth-Token": header["X-Auth-Token"], "Authorization": nil}, header.Get("Location")
}

func TestRedfishIdleSessionEnds(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{SessionIdle: time.Hour})
	token, _ := redfishLogin(t, b, "admin", "secret")
	redfishStep{method: "GET", path: redfishTestSystem, header: token, status: 200}.run(t, b)
	patch(redfishSessionService, `{"SessionTimeout":29}`, 400, "PropertyValueNotInList").run(t, b)
	patch(redfishSessionService, `{"SessionTimeout":30}`, 204, "").run(t, b)
	get(redfishSessionService, "SessionTimeout", "30").run(t, b)
	b.stateMu.Lock()
	b.sessions[0].used = time.Now().Add(-31 * time.Second)
	b.stateMu.Unlock()
	redfishStep{method: "GET", path: redfishTestSystem, header: token, status: 401}.run(t, b)
	if b.Sessions() != 0 {
		t.Errorf("%d sessions", b.Sessions())
	}
}

func TestRedfishLockEndsByItself(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{Faults: BMCFaults{LockAfter: 2}})
	wrong := `{"UserName":"admin","Password":"wrong"}`
	for range 2 {
		redfishStep{method: "POST", path: redfishSessions, body: wrong, status: 401}.run(t, b)
	}
	redfishStep{method: "GET", path: redfishTestSystem, status: 401}.run(t, b) // the right one
	b.SetFaults(func(f *BMCFaults) { f.LockFor = time.Nanosecond })
	redfishStep{method: "GET", path: redfishTestSystem, status: 200}.run(t, b)
}

func TestRedfishPasswordMustBeChangedFirst(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{PasswordChangeRequired: true})
	const account = "/redfish/v1/AccountService/Accounts/1"
	redfishStep{method: "GET", path: redfishTestSystem, status: 403, at: "message", want: "PasswordChangeRequired"}.run(t, b)
	token, session := redfishLogin(t, b, "admin", "secret")
	redfishStep{method: "GET", path: redfishTestSystem, header: token, status: 403}.run(t, b)
	redfishStep{method: "GET", path: session, header: token, status: 200}.run(t, b)
	redfishStep{method: "GET", path: account, header: token, status: 200, at: "PasswordChangeRequired", want: "true"}.run(t, b)
	redfishStep{method: "PATCH", path: account, body: `{"Password":"short"}`, header: token, status: 400}.run(t, b)
	redfishStep{method: "PATCH", path: account, body: `{"Password":"a new one"}`, header: token, status: 200}.run(t, b)
	redfishStep{method: "GET", path: redfishTestSystem, header: token, status: 200}.run(t, b) // the session that changed it stays
	redfishStep{method: "GET", path: redfishTestSystem, status: 401}.run(t, b)                // the old password
	if b.Password("admin") != "a new one" {
		t.Errorf("password %q", b.Password("admin"))
	}
}

func TestRedfishRolesLimitWhatAnAccountMayDo(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{})
	const accounts = "/redfish/v1/AccountService/Accounts"
	create := func(user, role string) (http.Header, string) {
		redfishStep{method: "POST", path: accounts, body: `{"UserName":"` + user + `","Password":"longenough","RoleId":"` + role + `"}`, status: 201, at: "RoleId", want: role}.run(t, b)
		token, _ := redfishLogin(t, b, user, "longenough")
		_, _, all := redfishDo(t, b, "GET", accounts, "", nil)
		members := all["Members"].([]any)
		return token, redfishWord(members[len(members)-1].(map[string]any), "@odata.id")
	}
	operator, _ := create("op", "Operator")
	reader, self := create("ro", "ReadOnly")
	power := func(token http.Header, kind string, want int) {
		redfishStep{method: "POST", path: redfishTestReset, body: `{"ResetType":"` + kind + `"}`, header: token, status: want}.run(t, b)
	}
	power(reader, "On", 403)
	power(operator, "On", 204)
	redfishStep{method: "GET", path: redfishTestSystem, header: reader, status: 200}.run(t, b)
	redfishStep{method: "POST", path: accounts, body: `{"UserName":"x","Password":"longenough","RoleId":"Administrator"}`, header: operator, status: 403}.run(t, b)
	redfishStep{method: "PATCH", path: self, body: `{"RoleId":"Administrator"}`, header: reader, status: 403}.run(t, b)
	redfishStep{method: "PATCH", path: self, body: `{"Password":"my own one"}`, header: reader, status: 200}.run(t, b)
	redfishStep{method: "POST", path: accounts, body: `{"UserName":"op","Password":"longenough","RoleId":"ReadOnly"}`, status: 400, at: "message", want: "ResourceAlreadyExists"}.run(t, b)
	redfishStep{method: "DELETE", path: accounts + "/1", status: 400, at: "message", want: "ResourceCannotBeDeleted"}.run(t, b) // the last administrator
	redfishStep{method: "DELETE", path: self, status: 204}.run(t, b)
	redfishStep{method: "GET", path: redfishTestSystem, header: reader, status: 401}.run(t, b)
}
