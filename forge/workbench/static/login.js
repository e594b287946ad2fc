// The token stands behind the # of the first address, which no browser sends and no server logs.
const form = document.querySelector("form");
const page = location.pathname.split("/").pop() + location.search;
form.elements.next.value = page;
const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) {
  history.replaceState(null, "", location.pathname + location.search);
  form.elements.token.value = token;
  form.submit();
}
