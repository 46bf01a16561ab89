// A file of its own, because the page's Content-Security-Policy allows no inline script.
window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  // The default asks a validator on another host, and shows it the address of this server.
  validatorUrl: null,
  // Otherwise an access token stays in localStorage after the tab is closed.
  persistAuthorization: false,
  // Nobody may point this page, with what was typed into it, at a document of theirs by ?url= or ?configUrl=.
  queryConfigEnabled: false,
});
